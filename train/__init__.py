"""Shards -> a trained transcoder; no language model in sight."""
