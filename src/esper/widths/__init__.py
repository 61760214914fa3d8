"""Widths between layers: found by one dry run, and proved on the side."""
