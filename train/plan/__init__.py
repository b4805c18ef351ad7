"""Disk, memory and time at any size, by formula"""
