"""A run on the hub; its features in other tools' files."""
