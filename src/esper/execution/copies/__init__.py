"""Copies of a model's weights that the user keeps, and that grow with it."""
