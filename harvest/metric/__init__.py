"""The metric and the Jacobian lens of a store."""
