"""Picture of regret over time: median of every strategy's runs, with a band around the best."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esper.drawing.style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    bare,
    figure,
    log_scale,
    save,
    title,
)
from esper.studies.simulated.regret import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
_BASELINE = "random"
_ACROSS = 3
_BANDS = 3
"""Number of strategies that get a band; more would hide each other."""


def draw_regret(trials: Sequence[Trial], path: Path) -> None:
    """Draw the median regret over the steps, on a logarithmic scale, one field per environment.

    The band of the best three holds eight runs in ten. Of more than seven strategies, the seven
    that are best over all environments, by mean rank, are drawn, and random.

    Raises:
        ConfigError: as `check` does.
    """
    fields = [list(group) for _, group in groupby(trials, key=lambda one: one.environment.name)]
    colours = dict(zip(_best(fields), _COLOURS, strict=False))
    across = min(_ACROSS, len(fields))
    down = -(-len(fields) // across)
    made = figure(path, 4.2 * across + 0.6, 3.1 * down + 0.9)
    grid = made.subplots(down, across, squeeze=False).flat
    for axes in list(grid)[len(fields) :]:
        axes.set_visible(False)
    for axes, there in zip(made.axes, fields, strict=False):
        _draw_field(axes, there, colours)
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower left", ncols=5, frameon=False, fontsize=8)
    runs = len(trials[0].regrets)
    title(made, f"Regret over time: median of {runs} runs, band of eight in ten for the best")
    save(made, path)


def _draw_field(axes: "Axes", trials: Sequence[Trial], colours: dict[str, str]) -> None:
    drawn = [trial for trial in trials if trial.strategy in colours]
    drawn += [trial for trial in trials if trial.strategy == _BASELINE]
    for trial in drawn:
        low, median, high = np.quantile(trial.paths, (0.1, 0.5, 0.9), axis=0)
        colour = colours.get(trial.strategy, GREY)
        style = DASHED if trial.strategy == _BASELINE else "-"
        axes.plot(trial.at, median, color=colour, linewidth=1.5, linestyle=style,
                  label=trial.strategy)  # fmt: skip
        if trial.strategy in list(colours)[:_BANDS]:
            axes.fill_between(trial.at, low, high, color=colour, alpha=0.12, linewidth=0)
    log_scale(axes)
    # A run without regret yet has no place on a logarithmic scale.
    least = min(float(trial.paths[:, -1].mean()) for trial in drawn)
    most = max(float(trial.paths.max()) for trial in drawn)
    if most > 0:
        axes.set_ylim(max(least, most * 1e-4) * 0.1, most * 1.3)
    axes.set_xlim(0, int(trials[0].at[-1]))
    axes.set_xlabel("choices", fontsize=8)
    axes.set_ylabel("regret", fontsize=8)
    where = trials[0].environment
    axes.set_title(f"{where.name}: {where.what}", fontsize=8, loc="left", color=INK, wrap=True)
    axes.tick_params(labelsize=8, which="both")
    bare(axes)


def _best(fields: Sequence[Sequence[Trial]]) -> list[str]:
    """Names of the strategies to draw, the best by mean rank over environments first."""
    ranks: dict[str, int] = {}
    for there in fields:
        for rank, trial in enumerate(sorted(there, key=lambda trial: trial.mean)):
            ranks[trial.strategy] = ranks.get(trial.strategy, 0) + rank
    ranks.pop(_BASELINE, None)
    return sorted(ranks, key=lambda name: ranks[name])[: len(_COLOURS)]
