"""How costs grow with shards, rows, latents and processes, as exponents: parts that run one by one."""
