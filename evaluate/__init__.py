"""Judging transcoders on held-out shards."""
