"""A headless browser for pages and reports."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"

PATIENCE = 300_000
"""Milliseconds that a browser may take for anything, on a busy machine."""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def launched(playwright):
    """Chromium, without a window."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), timeout=PATIENCE)
