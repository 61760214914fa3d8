"""Studies in simulated environments: regret."""
