"""The MLP of a layer, kept in a store"""
