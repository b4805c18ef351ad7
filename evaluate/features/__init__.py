"""What every latent responds to"""
