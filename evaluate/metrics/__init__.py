"""Figures of a transcoder from cached rows alone."""
