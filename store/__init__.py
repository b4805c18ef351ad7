"""The contracts on disk: shards, loader, transcoder artefact (FORMAT.md)."""

import ctypes
import os
import sys

# Waiting OpenMP threads spin for a tenth of a millisecond, then sleep: those that go on spinning make a step four times
# slower, and a harvest five times, as soon as another process wants the cores; those that sleep at once leave a fifth of a
# virtual machine's cores idle. libgomp reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

# Freed memory stays with the process: giving it back after each batch costs a page fault per 4 KiB of the next one, which
# made the conversion to float32 twice as slow. M_MMAP_THRESHOLD is -3, M_TRIM_THRESHOLD -1, in bytes; only glibc has them.
if sys.platform == "linux" and hasattr(_libc := ctypes.CDLL(None), "mallopt"):
    _libc.mallopt(-3, 1 << 25)
    _libc.mallopt(-1, 1 << 30)
