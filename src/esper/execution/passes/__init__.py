"""Passes on the side of a training: they measure and train, and leave the host as it was."""
