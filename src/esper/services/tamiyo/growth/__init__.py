"""One graft after the other: where a run grows, what is under way, what is put back."""
