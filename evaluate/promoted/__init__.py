"""The tokens whose logits a latent raises and lowers"""
