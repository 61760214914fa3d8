"""Drawings of an event log, and the look of all pictures."""
