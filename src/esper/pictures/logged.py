"""Pictures of studies: a confidence sequence over time, estimates beside what was earned."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esper.contracts.errors import ConfigError
from esper.pictures.run import FORMATS
from esper.studies.logged.ab import AbResult, Comparison
from esper.studies.logged.replay import Replay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), as in the picture of a run.
_INK, _GREY, _BLUE, _GREEN, _ORANGE = "#222222", "#6b6b6b", "#0072b2", "#009e73", "#e69f00"


def draw_ab(result: AbResult, path: Path) -> None:
    """Draw every comparison's confidence sequence, look by look.

    Raises:
        ConfigError: if matplotlib is not installed, or the suffix is another than .png, .svg, .pdf.
    """
    comparisons = result.comparisons
    figure = _figure(path, height=0.8 + 3.2 * len(comparisons))
    for axes, one in zip(figure.subplots(len(comparisons), 1, squeeze=False)[:, 0], comparisons,
                         strict=True):  # fmt: skip
        _draw_sequence(axes, one, result.unit)
    title = f"A/B test {result.test!r}" if result.balance.even else f"{result.test!r}: no verdict"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    _save(figure, path)


def draw_replay(result: Replay, path: Path) -> None:
    """Draw what was earned, and what the strategy would have earned by each estimator.

    Raises:
        ConfigError: if matplotlib is not installed, the suffix is another than .png, .svg, .pdf, or
            the replay was refused.
    """
    if result.refusal:
        raise ConfigError("there is nothing to draw: the replay was refused")
    figure = _figure(path, height=2.8)
    axes = figure.subplots()
    for row, one in enumerate(result.estimates):
        low, high = one.interval
        colour = _GREY if one.name == "logged" else _BLUE
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([one.value], [row], "o", color=colour, markersize=6)
    axes.axvline(result.estimates[0].value, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(result.estimates)), [one.name for one in result.estimates])
    axes.set_ylim(len(result.estimates) - 0.5, -0.5)
    axes.set_xlabel("mean reward of a graft, with 95 % interval")
    used = [chooser for chooser in result.choosers if chooser not in result.left_out]
    said = f"{result.strategy}, replayed on {result.used} outcomes of {', '.join(used)}"
    axes.set_title(said, fontsize=11, loc="left", color=_INK)
    _bare(axes)
    _save(figure, path)


def _draw_sequence(axes: "Axes", one: Comparison, unit: str) -> None:
    path = one.path
    shown = np.isfinite(path.low) & np.isfinite(path.high) & (path.sd > 0)
    axes.axhline(0, color=_GREY, linewidth=0.9)
    axes.set_title(one.verdict, fontsize=10, loc="left", color=_INK, wrap=True)
    axes.set_ylabel(f"{one.arm} minus {one.reference}, sd")
    axes.set_xlabel(f"{unit}s with an outcome")
    _bare(axes)
    if not shown.any():
        axes.text(0.5, 0.6, "no bound yet", transform=axes.transAxes, ha="center", color=_GREY)
        return
    sd = float(path.sd[-1])
    counts, low, high = (path.counts[shown], path.low[shown] / sd, path.high[shown] / sd)
    colour = {"decided": _GREEN, "faded": _ORANGE}.get(one.state, _BLUE)
    axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0, step="post")
    axes.step(counts, low, color=colour, linewidth=0.9, where="post")
    axes.step(counts, high, color=colour, linewidth=0.9, where="post")
    axes.plot(counts, path.difference[shown] / sd, color=colour, linewidth=1.6)
    if one.decided_after is not None:
        axes.axvline(one.decided_after, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(0, counts[-1] * 1.02)
    # The first intervals are wide; the interesting ones would be a line beside them.
    top = float(np.quantile(np.abs(np.concatenate([low, high])), 0.9)) * 1.2
    axes.set_ylim(-top, top)


def _figure(path: Path, *, height: float) -> "Figure":
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture is .png, .svg or .pdf, not {path.name!r}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (an extra)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError('a picture needs matplotlib: pip install "esper-morph[plot]"') from error
    figure = Figure(figsize=(9, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    stamp = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix.lower())
    figure.savefig(path, metadata={stamp: None} if stamp else None)


def _bare(axes: "Axes") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b5b5b5")
    axes.tick_params(colors=_INK, color="#b5b5b5")
