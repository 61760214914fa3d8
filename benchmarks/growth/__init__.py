"""Growth: `command` says what is measured."""
