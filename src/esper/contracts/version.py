"""Version of Esper."""

VERSION = "0.1.0"
