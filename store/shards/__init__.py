"""Activation shards on disk"""
