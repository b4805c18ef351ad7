"""Whole files, URLs, locks."""
