"""Every MLP replaced by its transcoder at once: what that costs the language model, layer by layer."""
