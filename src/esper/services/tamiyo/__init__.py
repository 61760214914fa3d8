"""Tamiyo: reads health, decides where and when to grow, and which seed; learns from what came."""
