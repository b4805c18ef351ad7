"""Text -> tokens -> activations -> shards: the only room that runs the model over a corpus."""
