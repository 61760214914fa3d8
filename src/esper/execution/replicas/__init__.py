"""Replicas: processes that each train a copy of one model, and stay equal."""
