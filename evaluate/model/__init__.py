"""What needs the language model: splice, spelling, intervene, importance."""
