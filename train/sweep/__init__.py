"""Many dictionaries from one pass over the store: the options, and the command."""
