"""Compares transcoders at equal L0, checked, with a winner where the data supports one."""
