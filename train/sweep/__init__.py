"""Many dictionaries from one pass"""
