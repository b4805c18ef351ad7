"""What every latent responds to: collect, write, read, analyse, partners across layers."""
