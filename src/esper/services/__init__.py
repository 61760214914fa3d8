"""Services: those that decide."""
