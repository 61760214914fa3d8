"""Picture of growth: validation accuracy against the work so far, one panel a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.growth.goals import Tasks
from benchmarks.growth.kept import Arms
from esper.drawing.style import (
    BLUE,
    DASHED,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    VERMILION,
    bare,
    figure,
    save,
    title,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_LOOKS = {
    "static": (VERMILION, "-"),
    "static, gated": (ORANGE, "-"),
    "static, equal compute": (VERMILION, DASHED),
    "grown, from scratch": (GREEN, "-"),
    "gromo": (PURPLE, "-"),
    "grown": (BLUE, "-"),
}
_ACROSS = 3


def draw(tasks: Tasks, path: Path) -> None:
    """Draw the mean over seeds, epoch by epoch, of every arm; a dot is the end.

    Raises:
        ConfigError: as `esper.drawing.style.check` does.
    """
    across = min(_ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    made = figure(path, 4.4 * across + 0.4, 3.3 * down + 1.2)
    grid = list(made.subplots(down, across, squeeze=False).flat)
    for axes in grid[len(tasks) :]:
        axes.set_visible(False)
    named: dict[str, Artist] = {}
    for axes, (task, pairs) in zip(grid, tasks.items(), strict=False):
        _draw_task(axes, task, pairs)
        named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    made.legend(
        list(named.values()),
        list(named),
        loc="outside lower left",
        ncols=2 * across,
        frameon=False,
        fontsize=8,
    )
    seeds = max(map(len, tasks.values()))
    title(made, f"Accuracy for its compute: mean of {seeds} seeds")
    save(made, path)


def _draw_task(axes: "Axes", task: str, pairs: Sequence[Arms]) -> None:
    ends = []
    for arm, (colour, style) in _LOOKS.items():
        if not all(arm in p for p in pairs):
            continue
        epochs = min(len(p[arm].curve) for p in pairs)  # equal compute: seeds differ in length
        curve = 100 * np.mean([p[arm].curve[:epochs] for p in pairs], axis=0)
        spent = np.mean([p[arm].spent[:epochs] for p in pairs], axis=0) / 1e9
        width = 2.2 if arm == "grown" else 1.4
        axes.plot(spent, curve, color=colour, linestyle=style, linewidth=width, label=arm)
        axes.plot(spent[-1:], curve[-1:], "o", color=colour, markersize=4.5)
        ends.append(curve[-1])
    # The first epochs rise steeply; what is compared happens in the upper part, and the control
    # would be far below it.
    room = max(max(ends) - min(ends), 1.0)
    axes.set_ylim(max(min(ends) - 3 * room, 0), min(max(ends) + 0.4 * room, 100.5))
    control = 100 * np.mean([p["control"].curve[-1] for p in pairs])
    axes.set_xlim(left=0)
    axes.set_title(f"{task} (control {control:.1f} %)", fontsize=10, loc="left", color=INK)
    axes.set_xlabel("operations so far, all included (10⁹)", fontsize=8)
    axes.set_ylabel("validation accuracy (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    bare(axes)
