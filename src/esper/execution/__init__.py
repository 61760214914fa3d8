"""What runs in PyTorch: layers with seeds, surgery, shadow passes, counterfactuals, probes."""
