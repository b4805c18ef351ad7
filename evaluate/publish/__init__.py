"""A run on the hub: card, files, push."""
