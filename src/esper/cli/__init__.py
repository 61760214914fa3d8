"""Command line: a file for each command."""
