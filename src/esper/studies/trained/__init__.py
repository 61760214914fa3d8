"""Studies in real trainings: what choosing is worth."""
