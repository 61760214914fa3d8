"""PyTorch: layers with seeds, surgery, shadow passes, counterfactuals, probes, checkpoints."""
