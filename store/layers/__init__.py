"""Several layers on one command line: how they are written, which ones `all` means, and a command run for each in turn."""
