"""The picture of a run: losses with the events of growth, and how every seed fared over time.

The right panel is drawn by `picture_rewards`. Time runs in epochs trained: what happened at the end
of epoch 4 stands at 5.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, final

from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.contracts.seeds import SeedState
from esper.pictures.rewards import draw_rewards
from esper.runs.run_reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

# Okabe & Ito (2008), Color universal design: told apart with every common colour blindness. The
# lightness of the states differs too, so the picture survives a grey printer.
_GREY, _BLUE, _INK = "#6b6b6b", "#0072b2", "#222222"
_STATES = {
    SeedState.TRAINING: ("#56b4e9", "training in the shadow"),
    SeedState.BLENDING: ("#e69f00", "blending in"),
    SeedState.FOSSILIZED: ("#009e73", "kept (cooldown)"),
    SeedState.CULLED: ("#d55e00", "culled (cooldown)"),
}
_DORMANT, _DORMANT_BESIDE_KEPT = "#ececec", "#bfe3d7"
_LOSS_HEIGHT_POINTS = 240  # of the upper panel, about
# Marker, size, colour, label, and points above the curve: several may fall on one epoch.
_MARKS = {
    "blending": ("^", 6.5, "#e69f00", "blend starts", -9),
    "kept": ("o", 6.5, "#009e73", "kept", 0),
    "culled": ("X", 7.5, "#d55e00", "culled", 9),
}


@final
@dataclass(frozen=True, slots=True)
class Span:
    """A seed in one state.

    Attributes:
        start: In epochs trained.
        end: In epochs trained; where the next state starts, or the log ends.
        state: The state.
        kept: Kernels of this seed that the layer had kept before.
    """

    start: int
    end: int
    state: SeedState
    kept: int


def draw(run: Run, events: Sequence[Event], path: Path) -> None:
    """Draw a run, finished or not, into ``path``; its suffix says how: .png, .svg or .pdf.

    Raises:
        ConfigError: if matplotlib is not installed, or the suffix is another.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture is .png, .svg or .pdf, not {path.name!r}")
    try:
        # The object interface: no pyplot, so no global state and nothing to close.
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (an extra)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError('a picture needs matplotlib: pip install "esper-morph[plot]"') from error
    rows = spans(run, events)
    lower = 0.9 + 0.26 * len(rows)
    figure = Figure(figsize=(11.4, 4.6 + lower), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["losses", "."], ["states", "rewards"]],
        width_ratios=(8.2, 1.8),
        height_ratios=(3.4, lower),
    )
    losses, states, earned = panels["losses"], panels["states"], panels["rewards"]
    losses.sharex(states)
    losses.tick_params(labelbottom=False)
    _draw_losses(figure, losses, run, events)
    _draw_states(states, rows, run.spec["epochs"])
    earned.sharey(states)
    draw_rewards(earned, [(layer, seed) for layer, seed, _ in rows], events, "nats")
    _bare(earned)
    _draw_title(losses, run, events)
    # Two pictures of one run are then the same file.
    stamp = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix.lower())
    figure.savefig(path, metadata={stamp: None} if stamp else None)


def spans(run: Run, events: Iterable[Event]) -> dict[tuple[str, int, str], list[Span]]:
    """States over time of every slot (layer, seed, blueprint); those of no length are left out."""
    last = 0
    changes: dict[tuple[str, int], list[tuple[int, SeedState]]] = {}
    for event in events:
        if event.kind == "epoch":
            last = event.data["epoch"] + 1
        elif event.kind == "lifecycle":
            change = (event.data["epoch"] + 1, SeedState(event.data["new"]))
            changes.setdefault((event.data["layer"], event.data["seed"]), []).append(change)
    return {
        (layer, seed_idx, blueprint): _spans_of(changes.get((layer, seed_idx), []), last)
        for layer, seed_idx, blueprint in run.slots
    }


def _spans_of(changes: list[tuple[int, SeedState]], last: int) -> list[Span]:
    found, kept = [], 0
    edges = [(0, SeedState.DORMANT), *changes, (last, SeedState.DORMANT)]
    for (start, state), (end, _) in pairwise(edges):
        if end > start:
            found.append(Span(start, end, state, kept))
        kept += state is SeedState.FOSSILIZED
    return found


def _draw_losses(figure: "Figure", axes: "Axes", run: Run, events: Sequence[Event]) -> None:
    from matplotlib.transforms import offset_copy  # noqa: PLC0415

    control = list(run.control.get("losses", ()))
    grown = {
        event.data["epoch"] + 1: event.data["holdout_loss"]
        for event in events
        if event.kind == "epoch" and event.data["holdout_loss"] is not None
    }
    axes.plot(range(1, len(control) + 1), control, color=_GREY, linewidth=1.6)
    axes.plot(list(grown), list(grown.values()), color=_BLUE, linewidth=2.2)
    for name, (marker, size, colour, label, points) in _MARKS.items():
        at = [x for x in _marked(events, name) if x in grown]
        axes.plot(
            at,
            [grown[x] for x in at],
            marker,
            transform=offset_copy(axes.transData, figure, y=points, units="points"),
            color=colour,
            label=label,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=4,
        )
    axes.set_ylabel("validation loss (nats)")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    _scale(axes, [*control, *grown.values()])
    ends = {}
    if control:
        ends["control"] = (len(control), control[-1], _GREY)
    if grown:
        ends["grown"] = (max(grown), grown[max(grown)], _BLUE)
    _name_curves(axes, ends)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper right", handletextpad=0.2)
    _bare(axes)


def _name_curves(axes: "Axes", ends: dict[str, tuple[int, float, str]]) -> None:
    """Write name and last value at the end of each curve, apart even where the curves meet."""
    height = {
        name: axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1]
        for name, (x, y, _) in ends.items()
    }
    shift = dict.fromkeys(ends, 0.0)
    if len(ends) == 2:
        low, high = sorted(ends, key=lambda name: height[name])
        overlap = max(0.0, 30 - (height[high] - height[low]) * _LOSS_HEIGHT_POINTS)
        shift = {low: -overlap / 2, high: overlap / 2}
    for name, (x, y, colour) in ends.items():
        axes.annotate(
            f"{name}\n{y:.3f}",
            (x, y),
            xytext=(6, shift[name]),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )


def _marked(events: Sequence[Event], name: str) -> list[int]:
    """When kernels began to blend in, were kept, or were culled."""
    if name == "blending":
        return [
            event.data["epoch"] + 1
            for event in events
            if event.kind == "lifecycle" and event.data["new"] == SeedState.BLENDING
        ]
    return [
        event.data["epoch"] + 1
        for event in events
        if event.kind == "graft" and event.data["kept"] == (name == "kept")
    ]


def _scale(axes: "Axes", losses: list[float]) -> None:
    """Logarithmic where the losses spread widely, with plain numbers at the ticks."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator  # noqa: PLC0415

    if not losses or min(losses) <= 0 or max(losses) / min(losses) < 4:
        return
    axes.set_yscale("log")
    few = max(losses) / min(losses) < 20
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_states(axes: "Axes", rows: dict[tuple[str, int, str], list[Span]], epochs: int) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    names = list(rows)
    for y, row in enumerate(rows.values()):
        for span in row:
            axes.broken_barh(
                [(span.start, span.end - span.start)],
                (y - 0.39, 0.78),
                facecolor=_colour(span),
                edgecolor="white",
                linewidth=0.6,
            )
    starts = [next(ys)[0] for _, ys in groupby(enumerate(names), key=lambda item: item[1][0])]
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="#b5b5b5", linewidth=0.8)
    axes.set_yticks(range(len(names)), [f"{name}:{idx}  {kind}" for name, idx, kind in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, epochs)
    axes.set_xlabel("epochs trained")
    axes.tick_params(axis="y", length=0, labelsize=9)
    patches = [
        Patch(color=_DORMANT, label="dormant"),
        *(Patch(color=colour, label=label) for colour, label in _STATES.values()),
        Patch(color=_DORMANT_BESIDE_KEPT, label="dormant, kernel kept"),
    ]
    axes.legend(
        handles=patches,
        frameon=False,
        fontsize=9,
        ncols=len(patches),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        borderaxespad=0.2,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    _bare(axes)


def _colour(span: Span) -> str:
    if span.state in _STATES:
        return _STATES[span.state][0]
    return _DORMANT_BESIDE_KEPT if span.kept else _DORMANT


def _draw_title(axes: "Axes", run: Run, events: Sequence[Event]) -> None:
    spec = run.spec
    head = f"{spec['task']}, seed {spec['seed']}, {run.strategy}"
    if run.result is None:
        done = sum(event.kind == "epoch" for event in events)
        what = f"after {done} of {spec['epochs']} epochs"
    else:
        what = "test accuracy: " + ",  ".join(
            f"{name} {scores['test_accuracy'] * 100:.1f} % with {scores['parameters']:,} parameters"
            for name, scores in (("grown", run.result["grown"]), ("control", run.result["control"]))
        )
    axes.set_title(what, fontsize=11, color=_INK, loc="left", pad=10)
    axes.annotate(
        head,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 30),
        textcoords="offset points",
        fontsize=13,
        fontweight="bold",
        color=_INK,
    )


def _bare(axes: "Axes") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b5b5b5")
    axes.tick_params(colors=_INK, color="#b5b5b5")
