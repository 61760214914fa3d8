"""Strategies for rewards that depend on the layer, its health and the kernel."""
