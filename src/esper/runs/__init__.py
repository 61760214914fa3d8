"""Runs: settings become a training run, a run becomes a folder that can be read back."""
