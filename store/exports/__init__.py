"""Runs written for other tools, and checked."""
