"""Text -> documents -> rows of tokens, in an order that never changes."""
