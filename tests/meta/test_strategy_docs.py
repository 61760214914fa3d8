"""What the documentation says of the strategies is what they say of themselves."""

import sys
from pathlib import Path
from runpy import run_path

import pytest

from esper.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_strategies_say() -> None:
    script = run_path(str(ROOT / "scripts" / "strategy_docs.py"))
    written = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert written == script["page"](), f"stale: {sys.executable} scripts/strategy_docs.py"


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_a_strategy_says_when_to_use_it_and_where_it_is_from(name: str) -> None:
    made = STRATEGIES.load(name)
    assert made.when
    assert not made.when.endswith(".")
    assert not made.learns or "Source:" in (made.__doc__ or "")
