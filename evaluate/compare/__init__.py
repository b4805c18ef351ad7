"""Compares transcoders at equal L0"""
