"""Optimizers and schedulers of a run, and the kernels that join them."""
