"""What a harvest takes, measured."""
