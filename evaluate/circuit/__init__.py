"""The map: what each latent adds to the pre-activations of latents in later layers."""
