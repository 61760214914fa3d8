"""A picture of regret over time: the median run of every strategy, and a band around it."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esper.contracts.errors import ConfigError
from esper.pictures.run import FORMATS
from esper.studies.simulated.regret import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), as in the picture of a run.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
_INK, _GREY = "#222222", "#6b6b6b"
_BASELINE = "random"
_ACROSS = 3
_BANDS = 3
"""Strategies that get a band; more would hide each other."""


def check(path: Path) -> None:
    """See that a picture can be drawn there.

    Raises:
        ConfigError: if matplotlib is not installed, the suffix is another than .png, .svg, .pdf,
            or there is no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture is .png, .svg or .pdf, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent} for the picture; make it first")
    if find_spec("matplotlib") is None:
        raise ConfigError('a picture needs matplotlib: pip install "esper-morph[plot]"')


def draw_regret(trials: Sequence[Trial], path: Path) -> None:
    """Draw the median regret over the steps, on a logarithmic scale, one field per environment.

    The band of the best three holds eight runs in ten. Where more than seven strategies took part,
    the seven that are best over all environments, by mean rank, are drawn, and random.

    Raises:
        ConfigError: as `check` does.
    """
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (an extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    fields = [
        (trials_there[0], trials_there)
        for _, group in groupby(trials, key=lambda trial: trial.environment.name)
        if (trials_there := list(group))
    ]
    colours = dict(zip(_best(trials), _COLOURS, strict=False))
    across = min(_ACROSS, len(fields))
    down = -(-len(fields) // across)
    figure = Figure(figsize=(4.2 * across + 0.6, 3.1 * down + 0.9), dpi=120, facecolor="white",
                    layout="constrained")  # fmt: skip
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False).flat
    for axes in list(grid)[len(fields) :]:
        axes.set_visible(False)
    for axes, (one, there) in zip(figure.axes, fields, strict=False):
        _draw_field(axes, there, colours)
        axes.set_title(f"{one.environment.name}: {one.environment.what}", fontsize=8, loc="left",
                       color=_INK, wrap=True)  # fmt: skip
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=5, frameon=False, fontsize=8)
    runs = len(trials[0].regrets)
    said = f"Regret over time: median of {runs} runs, band of eight in ten for the best"
    figure.suptitle(said, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    stamp = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix.lower())
    figure.savefig(path, metadata={stamp: None} if stamp else None)


def _draw_field(axes: "Axes", trials: Sequence[Trial], colours: dict[str, str]) -> None:
    drawn = [trial for trial in trials if trial.strategy in colours]
    drawn += [trial for trial in trials if trial.strategy == _BASELINE]
    for trial in drawn:
        low, median, high = np.quantile(trial.paths, (0.1, 0.5, 0.9), axis=0)
        baseline = trial.strategy == _BASELINE
        colour = _GREY if baseline else colours[trial.strategy]
        style = (0, (4, 3)) if baseline else "-"
        axes.plot(trial.at, median, color=colour, linewidth=1.5, linestyle=style,
                  label=trial.strategy)  # fmt: skip
        if not baseline and list(colours).index(trial.strategy) >= _BANDS:
            continue
        axes.fill_between(trial.at, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    # A run that has lost nothing yet has no place on such a scale.
    least = min(float(trial.paths[:, -1].mean()) for trial in drawn)
    most = max(float(trial.paths.max()) for trial in drawn)
    if most > 0:
        axes.set_ylim(max(least, most * 1e-4) * 0.1, most * 1.3)
    axes.set_xlim(0, int(trials[0].at[-1]))
    axes.set_xlabel("choices", fontsize=8)
    axes.set_ylabel("regret", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b5b5b5")
    axes.tick_params(colors=_INK, color="#b5b5b5", labelsize=8, which="both")


def _best(trials: Sequence[Trial]) -> list[str]:
    """Names of the strategies to draw, the best by mean rank over environments first."""
    ranks: dict[str, list[int]] = {}
    for _, group in groupby(trials, key=lambda trial: trial.environment.name):
        for rank, trial in enumerate(sorted(group, key=lambda trial: trial.mean)):
            ranks.setdefault(trial.strategy, []).append(rank)
    ranks.pop(_BASELINE, None)
    return sorted(ranks, key=lambda name: sum(ranks[name]))[: len(_COLOURS)]
