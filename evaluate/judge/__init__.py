"""Automatic interpretation by a language model."""
