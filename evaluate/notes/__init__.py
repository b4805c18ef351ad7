"""Stars, names and notes that people give to latents"""
