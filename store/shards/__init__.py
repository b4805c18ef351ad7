"""Activation shards on disk: manifest, formats, reader, writer, pairs, ring."""
