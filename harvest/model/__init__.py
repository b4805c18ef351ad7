"""The language model: its families, their norms and sites, the embedded model, tokenizers."""
