"""The contracts on disk: activation shards, the loader that reads them, the transcoder artefact (FORMAT.md)."""

import os

# Waiting OpenMP threads sleep instead of spinning: spinning ones make a step four times slower, and a harvest five times,
# as soon as another process wants the cores. libgomp reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
