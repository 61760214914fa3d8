"""Studies of event logs: A/B tests and replay."""
