"""Undoing what a pass on the side has changed, wherever it is kept."""
