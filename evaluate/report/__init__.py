"""Figures, images and pages of a report."""
