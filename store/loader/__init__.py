"""Shards to batches on the device: schedule, batches, follow."""
