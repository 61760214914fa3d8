"""Service: histories over HTTP, and choices for those who do not train with Esper's own loop."""
