"""Names that options and files share; nothing heavy is imported here, so that a command's --help starts at once."""

from typing import Literal

ViewName = Literal["raw", "rms", "normed"]
"""How resid_mid is read (store/views.py)."""
