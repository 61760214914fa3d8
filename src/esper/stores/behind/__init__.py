"""Parts of a journal between it and its store: backlog, circuit breaker, delivery, thread."""
