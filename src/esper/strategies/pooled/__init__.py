"""Strategies whose layers and runs share what they learn."""
