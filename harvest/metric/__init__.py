"""The metric of a store: what an error at each site costs the language model."""
