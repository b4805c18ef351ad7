"""Many dictionaries from one pass over the store: options and comparison."""
