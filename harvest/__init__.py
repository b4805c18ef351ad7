"""Text -> tokens -> activations -> shards: the only room that runs the language model over a corpus."""
