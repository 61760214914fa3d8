"""Records: the outcomes of every seed, folded from events; what strategies read."""
