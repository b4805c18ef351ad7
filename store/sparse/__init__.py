"""Search for active latents on any device."""
