"""A dictionary for each of several layers, from one stream: options, memory, and one budget of active latents"""
