"""One training step"""
