"""Pictures of studies of logs: the confidence sequence of an A/B test, estimates of a replay."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esper.contracts.errors import ConfigError
from esper.drawing.style import BLUE, DASHED, GREEN, GREY, INK, ORANGE, bare, figure, save, title
from esper.studies.logged.ab import AbResult, Comparison
from esper.studies.logged.replay import Replay

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_ab(result: AbResult, path: Path) -> None:
    """Draw every comparison's confidence sequence, look by look.

    Raises:
        ConfigError: as `check` does.
    """
    count = len(result.comparisons)
    made = figure(path, 9, 0.8 + 3.2 * count)
    fields = made.subplots(count, 1, squeeze=False)[:, 0]
    for axes, one in zip(fields, result.comparisons, strict=True):
        _draw_sequence(axes, one, result.unit)
    title(made, f"A/B test {result.test!r}" + ("" if result.balance.even else ": no verdict"))
    save(made, path)


def draw_replay(result: Replay, path: Path) -> None:
    """Draw the logged mean, and the strategy's mean by each estimator.

    Raises:
        ConfigError: as `check` does, or if the replay has no estimate.
    """
    if result.refusal:
        raise ConfigError("there is nothing to draw: the replay was refused")
    made = figure(path, 9, 2.8)
    axes = made.subplots()
    for row, one in enumerate(result.estimates):
        colour = GREY if one.name == "logged" else BLUE
        axes.plot(one.interval, [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([one.value], [row], "o", color=colour, markersize=6)
    axes.axvline(result.estimates[0].value, color=GREY, linewidth=0.8, linestyle=DASHED)
    axes.set_yticks(range(len(result.estimates)), [one.label for one in result.estimates])
    axes.set_ylim(len(result.estimates) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("mean reward of a graft, with 95 % interval; dashed: logged mean")
    used = [chooser for chooser in result.choosers if chooser not in result.left_out]
    said = f"{result.strategy}, replayed on {result.used} outcomes of {', '.join(used)}"
    axes.set_title(said, fontsize=11, loc="left", color=INK)
    bare(axes)
    save(made, path)


def _draw_sequence(axes: "Axes", one: Comparison, unit: str) -> None:
    path = one.path
    shown = np.isfinite(path.low) & np.isfinite(path.high) & (path.sd > 0)
    axes.axhline(0, color=GREY, linewidth=0.9)
    axes.set_title(one.verdict, fontsize=10, loc="left", color=INK, wrap=True)
    axes.set_ylabel(f"{one.arm} minus {one.reference}, sd")
    axes.set_xlabel(f"{unit}s with an outcome")
    axes.locator_params(axis="x", integer=True)
    bare(axes)
    if not shown.any():
        axes.text(0.5, 0.6, "no bound yet", transform=axes.transAxes, ha="center", color=GREY)
        return
    sd = float(path.sd[-1])
    counts, low, high = (path.counts[shown], path.low[shown] / sd, path.high[shown] / sd)
    colour = {"decided": GREEN, "faded": ORANGE}.get(one.state, BLUE)
    level = f"{100 * one.confidence:.3g} % confidence sequence"
    axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0, step="post",
                      label=level)  # fmt: skip
    for end in (low, high):
        axes.step(counts, end, color=colour, linewidth=0.9, where="post")
    axes.plot(counts, path.difference[shown] / sd, color=colour, linewidth=1.6, label="difference")
    if one.decided_after is not None:
        axes.axvline(one.decided_after, color=colour, linewidth=0.9, linestyle=DASHED,
                     label="decided")  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="lower right", ncols=3)
    axes.set_xlim(0, counts[-1] * 1.02)
    # The first intervals are wide; the interesting ones would be a line beside them.
    top = float(np.quantile(np.abs(np.concatenate([low, high])), 0.9)) * 1.2
    axes.set_ylim(-top, top)
