"""The contracts on disk: activation shards, the loader that reads them, the transcoder artefact (FORMAT.md)."""
