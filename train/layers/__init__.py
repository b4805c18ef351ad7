"""Dictionaries of several layers from one stream"""
