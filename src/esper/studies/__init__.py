"""Studies: questions that a user can put to the logs, and experiments to repeat."""
