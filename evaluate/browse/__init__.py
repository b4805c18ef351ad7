"""The local browser, also as files."""
