"""What each latent adds to latents of later layers"""
