"""Derivatives of a transcoder and of the MLP that it stands for, compared"""
