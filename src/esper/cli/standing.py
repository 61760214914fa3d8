"""Where the seeds stand, and why each was chosen, in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from rich.console import Group, RenderableType
from rich.text import Text

from esper.cli.show import STATES, number, table
from esper.runs.run_reader import SeedStory
from esper.runs.seed_previews import History
from esper.services.tamiyo.preview import SeedOutlook

_LATEST = 20
"""Choices that are shown; --json has all."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of seeds.

    Attributes:
        seed: Layer and seed.
        blueprint: What it stands for, in the colour of its state.
        kept: Kernels of it that were kept; ``None`` where the log does not say.
        now: What the strategy thinks; ``None`` if it could not be asked.
    """

    seed: str
    blueprint: Text
    kept: int | None
    now: SeedOutlook | None


def rows_of_run(
    stories: Sequence[SeedStory], outlooks: Mapping[tuple[str, int], SeedOutlook]
) -> list[Row]:
    """One row for every seed of a run."""
    rows = []
    for story in stories:
        sign, style = STATES[story.state]
        blueprint = Text(f"{sign} {story.blueprint}", style=style)
        now = outlooks.get((story.layer, story.seed))
        rows.append(Row(f"{story.layer}:{story.seed}", blueprint, story.kept, now))
    return rows


def rows_of_history(history: History) -> list[Row]:
    """One row for every seed that a store knows of."""
    return [
        Row(f"{layer}:{seed_idx}", Text(history.blueprints[layer, seed_idx]), None, now)
        for (layer, seed_idx), now in history.outlooks.items()
    ]


def seeds_table(rows: Sequence[Row], strategy: str, unit: str = "") -> RenderableType:
    """Per seed: what it earned, how sure that is, and how the strategy would choose next.

    Args:
        rows: The seeds.
        strategy: Who would choose.
        unit: Of the rewards, as in ``", in nats"``.
    """
    kept = ("kept",) if any(row.kept is not None for row in rows) else ()
    columns = ("n", *kept, "mean", "95 % interval", "score", "p", "open")
    made = table(
        "seed", "blueprint", *columns, right=columns, title=f"Seeds, as {strategy} sees them now"
    )
    for row in rows:
        made.add_row(row.seed, row.blueprint, *_cells(row, bool(kept)))
    note = (
        f"mean: of the last n rewards{unit}, with its t interval; p: of being chosen next, were "
        "all seeds of the layer free; score: the strategy's own, - if it would be tried first; "
        "open: choices whose outcome has not come"
    )
    return Group(made, Text(note, style="dim"))


def choices_table(decisions: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The latest choices, and the reason of each; and who made it, where that was not one run."""
    if not decisions:
        return Text("No seed was chosen.")
    shown = decisions[-_LATEST:]
    cut = f", the last {len(shown)} of {len(decisions):,}" if len(shown) < len(decisions) else ""
    right = ("epoch", "p", "score")
    several = len({data.get("run") for data in decisions}) > 1
    run = ("run",) if several else ()
    made = table(*run, "epoch", "seed", "p", "score", "why", right=right, title=f"Choices{cut}")
    for data in shown:
        made.add_row(
            *([data["run"]] if several else []),
            str(data["epoch"]),
            f"{data['layer']}:{data['seed']}",
            f"{data['propensity']:.2f}",
            number(data["score"], ".2f"),
            f"{data['reason']}{' (fallback)' if data['fallback'] else ''}",
        )
    return made


def _cells(row: Row, kept: bool) -> Iterator[str]:
    now = row.now
    yield "-" if now is None else str(now.count)
    if kept:
        yield number(row.kept)
    if now is None:
        yield from "-----"
        return
    yield _reward(now.mean)
    yield "-" if now.interval is None else " to ".join(map(_reward, now.interval))
    yield number(now.score, ".2f")
    yield ("~" if now.propensity_error >= 0.005 else "") + f"{now.propensity:.2f}"
    yield str(now.pending)


def _reward(value: float | None) -> str:
    if value is None:
        return "-"
    plain = not value or 5e-4 <= abs(value) < 1e3
    return f"{value:+.4f}" if plain else f"{value:+.1e}"
