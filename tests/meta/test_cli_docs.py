"""What the documentation says of the command line is what the command line says."""

import sys
from pathlib import Path
from runpy import run_path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_help_says() -> None:
    script = run_path(str(ROOT / "scripts" / "cli_docs.py"))
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == script["page"](), f"stale: {sys.executable} scripts/cli_docs.py"
