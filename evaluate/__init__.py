"""Judging transcoders on the held-out shards: metrics, comparison, report."""
