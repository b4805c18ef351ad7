"""The MLP of a layer, kept in a store: its weights on disk, and its forward pass"""
