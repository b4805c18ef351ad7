"""Jacobian lenses, pre-fitted ones too."""
