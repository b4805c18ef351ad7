"""Text -> documents -> rows of tokens."""
