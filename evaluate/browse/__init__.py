"""The local browser, and the same pages as files."""
