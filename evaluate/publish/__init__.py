"""Collected features in other tools' files."""
