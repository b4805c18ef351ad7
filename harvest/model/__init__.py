"""The language model: families, norms, sites, tokenizers."""
