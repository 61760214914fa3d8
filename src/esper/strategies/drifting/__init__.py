"""Strategies for rewards that move: discounts, windows, change detection."""
