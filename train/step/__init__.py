"""One training step: the module, its losses, sparse passes and optimizer."""
