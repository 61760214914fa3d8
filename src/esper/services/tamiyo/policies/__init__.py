"""Policies: who decides where and when to grow."""
