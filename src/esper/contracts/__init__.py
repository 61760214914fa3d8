"""Words that every room shares: plain frozen values, settings and errors; no torch, no numpy."""
