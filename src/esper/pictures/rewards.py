"""The right panel of a run's picture: what each seed's grafts earned, and how sure that is."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from esper.contracts.events import Event
from esper.contracts.performance import SeedPerformanceMetrics
from esper.records.interval import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GREY, _GREEN, _RED = "#222222", "#b5b5b5", "#009e73", "#d55e00"
_ROOM = 0.6
"""To the left and right of the means, in units of their range; wider intervals leave the panel."""


def rewards(events: Iterable[Event]) -> dict[tuple[str, int], SeedPerformanceMetrics]:
    """Rewards of every seed that has any, oldest first; a failed graft earned 0."""
    found: dict[tuple[str, int], SeedPerformanceMetrics] = {}
    for event in events:
        if event.kind in {"outcome", "failure"}:
            layer, seed_idx = event.data["layer"], event.data["seed"]
            seed = found.setdefault((layer, seed_idx), SeedPerformanceMetrics(seed_idx, layer))
            seed.rewards.append(event.data.get("reward", 0.0))
    return found


def draw_rewards(
    axes: "Axes", seats: Sequence[tuple[str, int]], events: Sequence[Event], unit: str
) -> None:
    """Draw mean and 95 % t interval of every seed's rewards, one row for each of ``seats``."""
    known = rewards(events)
    means = [known[seat].mean for seat in seats if seat in known]
    low, high = min([0.0, *means]), max([0.0, *means])
    room = _ROOM * ((high - low) or 1.0)
    axes.axvline(0.0, color=_GREY, linewidth=0.8)
    for y, seat in enumerate(seats):
        seed = known.get(seat)
        if seed is None:
            continue
        colour = _GREEN if seed.mean > 0 else _RED
        ends = mean_interval(seed)
        if ends is not None:
            axes.plot(ends, [y, y], color=colour, linewidth=1.8, solid_capstyle="butt", alpha=0.7)
        axes.plot([seed.mean], [y], "o", color=colour, markersize=4.5)
        axes.annotate(
            str(seed.count),
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=_INK,
            annotation_clip=False,
        )
    axes.set_xlim(low - room, high + room)
    axes.set_title("mean reward, 95 %, n", fontsize=9, color=_INK, loc="left")
    axes.set_xlabel(unit, fontsize=9)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.tick_params(axis="x", labelsize=8)
