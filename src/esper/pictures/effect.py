"""Picture of an effect study: effects with their intervals, and gains over the epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esper.drawing.style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILION,
    bare,
    figure,
    save,
    title,
)
from esper.studies.trained.figures import SLOTS, TaskFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    SLOTS: GREY,
    "random": INK,
    "always-biggest": PURPLE,
    "cold": SKY,
    "warm1": ORANGE,
    "warm3": VERMILION,
    "audition": GREEN,
    "where": BLUE,
}
_SEED = PALE


def draw_effect(tasks: Sequence[TaskFigures], path: Path) -> None:
    """Draw a row for each task: at the left effects relative to the slots, at the right gains.

    Raises:
        ConfigError: as `style.check` does.
    """
    made = figure(path, 9.6, 3.2 * len(tasks) + 0.5)
    grid = made.subplots(len(tasks), 2, squeeze=False)
    for (left, right), one in zip(grid, tasks, strict=True):
        _draw_effects(left, one)
        _draw_gains(right, one)
    seeds = tasks[0].seeds
    runs = f"{seeds} run seed" + ("s" if seeds > 1 else "")
    title(made, f"What choosing the seed is worth: {runs}, 95 % intervals")
    save(made, path)


def _draw_effects(axes: "Axes", one: TaskFigures) -> None:
    rows = [row for row in one.cells if row.effect is not None and row.cell != SLOTS]
    axes.axvline(1.0, color=PALE, linewidth=0.8)
    for y, row in enumerate(rows):
        shown = row.effect.over_slots if row.effect else None
        if shown is None or shown.value is None:
            continue
        colour = _COLOURS.get(row.cell, GREY)
        if shown.low is not None and shown.high is not None:
            axes.plot([shown.low, shown.high], [y, y], color=colour, linewidth=1.5)
        axes.plot([shown.value], [y], "o", color=colour, markersize=5)
    names = [f"{row.cell}: {row.what}" if row.cell.startswith("seed") else row.cell for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("area of gain ÷ one seed always (mean of slots)", fontsize=8)
    null = ", a null task" if one.null else ""
    axes.set_title(f"{one.setup.task}{null}", fontsize=9, loc="left", color=INK)
    axes.tick_params(labelsize=8)
    bare(axes)


def _draw_gains(axes: "Axes", one: TaskFigures) -> None:
    window = one.setup.window
    axes.axvspan(window.start, window.stop - 1, color=PALE, alpha=0.2, linewidth=0)
    axes.axhline(0.0, color=PALE, linewidth=0.8)
    for name, curve in one.curves.items():
        if name.startswith("seed"):
            axes.plot(curve, color=_SEED, linewidth=0.8)
    for name, colour in _COLOURS.items():
        if name in one.curves:
            style = DASHED if name in {SLOTS, "random"} else "-"
            axes.plot(one.curves[name], color=colour, linewidth=1.5, linestyle=style, label=name)
    axes.legend(fontsize=7, frameon=False, ncols=2)
    axes.set_xlabel("epoch; shaded: the first ten grafts", fontsize=8)
    axes.set_ylabel("test loss below the control's, nats", fontsize=8)
    axes.tick_params(labelsize=8)
    bare(axes)
