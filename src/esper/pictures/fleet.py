"""Picture of a fleet, and its report: one HTML file, the picture inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

from esper.drawing.style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    VERMILION,
    bare,
    figure,
    save,
    title,
)
from esper.pictures.effect_report import STYLE, About, made_by, table_of
from esper.studies.trained.fleet_figures import FleetFigures
from esper.studies.trained.training import Trained

_COLOURS = {
    "random": INK,
    "always-biggest": PURPLE,
    "fixed": GREY,
    "auto": ORANGE,
    "audition-alone": GREEN,
    "audition": BLUE,
    "oracle": VERMILION,
}
_RUNS = ("run", "gain, nats", "test accuracy", "GFLOP", "kept", "file")


def draw_fleet(one: FleetFigures, path: Path) -> None:
    """Draw the learning curve, and at its right the gains of the primary figure.

    Raises:
        ConfigError: as `style.check` does.
    """
    made = figure(path, 9.6, 3.6)
    left, right = made.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in one.rows if row.over_random is not None]
    for row in rows:
        span = one.setup.adaptations / len(row.curve)
        at = [(n + 0.5) * span for n in range(len(row.curve))]
        style = DASHED if row.cell in {"random", "fixed"} else "-"
        colour = _COLOURS.get(row.cell, GREY)
        left.plot(at, row.curve, color=colour, linewidth=1.5, linestyle=style)
    left.axhline(1.0, color=PALE, linewidth=0.8)
    left.axvspan(one.young, one.setup.adaptations, color=PALE, alpha=0.2, linewidth=0)
    left.set_xlabel("adaptation; shaded: those of the figure at the right", fontsize=8)
    left.set_ylabel("gain ÷ mean gain of an arm at random", fontsize=8)
    for y, row in enumerate(rows):
        shown, colour = row.over_random, _COLOURS.get(row.cell, GREY)
        if shown is None or shown.value is None:
            continue
        if shown.low is not None and shown.high is not None:
            right.plot([shown.low, shown.high], [y, y], color=colour, linewidth=1.5)
        right.plot([shown.value], [y], "o", color=colour, markersize=5)
    right.axvline(1.0, color=PALE, linewidth=0.8)
    right.set_yticks(range(len(rows)), [row.cell for row in rows], fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("gain ÷ that of an arm at random", fontsize=8)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        bare(axes)
    for label, row in zip(right.get_yticklabels(), rows, strict=True):
        label.set_color(_COLOURS.get(row.cell, GREY))
    seeds = f"{one.seeds} run seed" + ("s" if one.seeds > 1 else "")
    title(made, f"{one.setup.adaptations} adaptations of one network: {seeds}, 95 % intervals")
    save(made, path)


@final
@dataclass(frozen=True, slots=True)
class Written:
    """Text and numbers of a report.

    Attributes:
        figures: The figures.
        how: How they were made.
        tables: Caption, head and rows of each table.
        sentences: What stands below them.
    """

    figures: FleetFigures
    how: About
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    sentences: Sequence[str]


def write_fleet(
    path: Path, what: Written, results: Sequence[Trained], files: Mapping[str, Path]
) -> None:
    """Write the report.

    Args:
        path: Where.
        what: What it says.
        results: All runs.
        files: JSON file of each run, by its name.
    """
    with TemporaryDirectory() as folder:
        picture = Path(folder, "fleet.svg")
        draw_fleet(what.figures, picture)
        drawn = picture.read_text(encoding="utf-8")
    cells = [(row.cell, row.what) for row in what.figures.rows]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Fleet</title><style>{STYLE}</style>",
        "<h1>What the history of a fleet is worth</h1>",
        made_by(what.how, what.figures.seeds),
        drawn[drawn.index("<svg") :],
        *[table_of(*one) for one in what.tables],
        *[f"<p>{escape(sentence)}.</p>" for sentence in what.sentences],
        table_of("Cells", ("cell", "what"), cells),
        table_of("Runs", _RUNS, [_run(run, results, files) for run in results]),
        "</html>\n",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _run(run: Trained, results: Sequence[Trained], files: Mapping[str, Path]) -> tuple[str, ...]:
    control = next(one for one in results if (one.cell, one.seed) == ("control", run.seed))
    gain = sum(control.test_losses) - sum(run.test_losses)
    return (
        run.name,
        f"{gain / len(run.test_losses):+.4f}",
        f"{sum(run.test_accuracies) / len(run.test_accuracies):.2%}",
        f"{sum(run.flops) / 1e9:.3g}",
        ", ".join(
            f"{g['adaptation']} {g['layer_name']} {g['blueprint']}" for g in run.grafts if g["kept"]
        ),
        files[run.name].name,
    )
