"""Derivatives of a transcoder beside those of its MLP"""
