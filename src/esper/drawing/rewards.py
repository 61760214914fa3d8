"""Right panel of a run's picture: mean reward of each seed's grafts, with its interval."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from esper.contracts.events import Event
from esper.contracts.performance import SeedPerformanceMetrics
from esper.drawing.style import BLUE, INK, PALE, bare
from esper.records.interval import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROOM = 0.6
"""Margin beside the means, in units of their range; wider intervals leave the panel."""


def rewards(events: Iterable[Event]) -> dict[tuple[str, int], SeedPerformanceMetrics]:
    """Rewards by layer and seed, oldest first; a failed graft counts as 0."""
    found: dict[tuple[str, int], SeedPerformanceMetrics] = {}
    for event in events:
        if event.kind in {"outcome", "failure"}:
            layer, seed_idx = event.data["layer"], event.data["seed"]
            seed = found.setdefault((layer, seed_idx), SeedPerformanceMetrics(seed_idx, layer))
            seed.rewards.append(event.data.get("reward", 0.0))
    return found


def draw_rewards(
    axes: "Axes", seeds: Sequence[tuple[str, int]], events: Sequence[Event], unit: str
) -> None:
    """Draw mean and 95 % t interval of every seed's rewards, one row for each of ``seeds``."""
    known = rewards(events)
    means = [known[seed].mean for seed in seeds if seed in known]
    low, high = min([0.0, *means]), max([0.0, *means])
    room = _ROOM * ((high - low) or 1.0)
    axes.axvline(0.0, color=PALE, linewidth=0.8)
    for y, seed in enumerate(seeds):
        if seed not in known:
            continue
        ends = mean_interval(known[seed])
        if ends is not None:
            axes.plot(ends, [y, y], color=BLUE, linewidth=1.8, solid_capstyle="butt", alpha=0.6)
        axes.plot([known[seed].mean], [y], "o", color=BLUE, markersize=4.5)
        _beside(axes, str(known[seed].count), y)
    _beside(axes, "n", -0.8)
    axes.set_xlim(low - room, high + room)
    axes.set_title("mean reward,\n95 % interval", fontsize=9, color=INK, loc="left", pad=6)
    axes.set_xlabel(f"{unit} (n: grafts)", fontsize=9)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.tick_params(axis="x", labelsize=8)
    bare(axes)


def _beside(axes: "Axes", text: str, y: float) -> None:
    axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                  color=INK, annotation_clip=False)  # fmt: skip
