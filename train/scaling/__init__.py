"""Options that scale with the size of a run"""
