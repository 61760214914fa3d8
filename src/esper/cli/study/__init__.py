"""Group of commands ``esper study``."""
