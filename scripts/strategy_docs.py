"""Write ``docs/strategies.md`` from the strategies: ``python scripts/strategy_docs.py``."""

import os
import sys
from dataclasses import fields, is_dataclass
from inspect import getdoc
from pathlib import Path

from esper.strategies import STRATEGIES, SelectionStrategy

PAGE = Path(__file__).resolve().parents[1] / "docs" / "strategies.md"
_HEAD = """# Choosing a strategy

Made from the strategies themselves by `python scripts/strategy_docs.py`; edit them, not this page.

`seed_selection.strategy` names the strategy. Choose it by what is known of the rewards; if that is
nothing, `auto`. Rewards are standardised before a strategy sees them, so no setting depends on
their units. A strategy that learns tries every seed once first, except those that it has evidence
on already; a baseline, which does not learn, makes all its choices itself.

`esper study regret` compares them in simulation ([results](../benchmarks/RESULTS.md)),
`esper replay` estimates from your own logs what another one would have earned, and an A/B test
(`ab_test:`, then `esper ab`) decides between them in production.
"""


def page() -> str:
    """The whole page, the same on every machine."""
    ours = [name for name in STRATEGIES.names() if _is_ours(STRATEGIES.load(name))]
    rows = [_row(name, STRATEGIES.load(name)) for name in ours]
    head = "| strategy | use it when | what it does | learns | settings |\n|---|---|---|---|---|\n"
    sources = "".join([_source(name, STRATEGIES.load(name)) for name in ours])
    made = f"{head}{''.join(rows)}\n## Sources\n\n{sources}"
    return f"{_HEAD}\n{made.replace('``', '`')}"


def _is_ours(made: type[SelectionStrategy]) -> bool:
    return made.__module__.startswith("esper.")


def _row(name: str, made: type[SelectionStrategy]) -> str:
    what = (getdoc(made) or "").partition("\n")[0].removesuffix(".").replace("|", "\\|")
    learns = "yes" if made.learns else "no"
    return f"| `{name}` | {made.when} | {what} | {learns} | {_settings(made)} |\n"


def _settings(made: type[SelectionStrategy]) -> str:
    if not is_dataclass(made):
        return ""
    return ", ".join([f"`{item.name}={item.default!r}`" for item in fields(made) if item.init])


def _source(name: str, made: type[SelectionStrategy]) -> str:
    _, _, after = (getdoc(made) or "").partition("\nSource:\n")
    lines = []
    for line in after.splitlines():
        if not line.startswith("    "):
            break
        lines.append(line.strip())
    return f"- `{name}`: {' '.join(lines)}\n" if lines else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{os.path.relpath(PAGE)}\n")
