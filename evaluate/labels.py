"""Names of metrics as people read them."""
