"""``python -m esper`` is ``esper``."""

from esper.cli.main import app

app()
