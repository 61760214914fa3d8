"""Pictures of runs and studies, drawn from the event log; matplotlib is an extra."""
