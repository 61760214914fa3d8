"""How long tests go on that draw faults at random: long where ``ESPER_LONG`` is set."""

import os


def rounds(few: int, many: int) -> int:
    """Number of rounds."""
    return many if os.environ.get("ESPER_LONG") else few
