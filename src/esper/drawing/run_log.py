"""Picture of a run: losses with the events of growth, and the state of every seed over time.

Epochs are those of the event log, from 0. A loss at epoch 4 was measured, and a state at epoch 4
was reached, at the end of that epoch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, final

from esper.contracts.events import Event
from esper.contracts.seeds import SeedState, seed_name
from esper.drawing import style
from esper.drawing.rewards import draw_rewards
from esper.drawing.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The lightness of the states differs too, so the picture survives a grey printer.
_STATES = {
    SeedState.GERMINATED: (SKY, "training in isolation"),
    SeedState.TRAINING: (SKY, "training in isolation"),
    SeedState.BLENDING: (ORANGE, "blending in"),
    SeedState.HOLDING: (ORANGE, "blending in"),
    SeedState.FOSSILIZED: (GREEN, "kept, cooling down"),
    SeedState.CULLED: (VERMILION, "culled, cooling down"),
}
_DORMANT = ("#ececec", "dormant")
_DORMANT_BESIDE_KEPT = ("#bfe3d7", "dormant, kernel kept before")
_MOST_ROWS = 40  # of a picture; with more seeds, only those that were chosen have one
_LOSS_HEIGHT_POINTS = 240  # of the upper panel, about
_NAME_HEIGHT_POINTS = 30
_ROUNDS = 20  # until three names stand apart
# Marker, size, colour, and points above the curve: several may fall on one epoch.
_MARKS = {
    "blending starts": ("^", 6.5, ORANGE, -9),
    "kernel kept": ("o", 6.5, GREEN, 0),
    "kernel culled": ("X", 7.5, VERMILION, 9),
    "host rolled back": ("D", 5.5, PURPLE, 18),
}


@final
@dataclass(frozen=True, slots=True)
class Span:
    """Epochs at whose ends a seed is in one state.

    Attributes:
        start: First of the epochs.
        end: Epoch after the last of them.
        state: The state.
        kept: Kernels of this seed that the layer had kept before.
    """

    start: int
    end: int
    state: SeedState
    kept: int


Seeds = Sequence[tuple[str, int, str]]
"""Layer, seed and blueprint of every seed, in the order of the network."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Surroundings of a run's picture: what it shows beside the events.

    Attributes:
        title: What ran.
        subtitle: What came of it.
        seeds: The seeds.
        epochs: Epochs of the run in all.
        losses: Losses by name of the curve, ``"control"``, ``"static"``, ``"grown"``, epoch by
            epoch, ``None`` where there is none; those of the grown one go before the log's.
        unit: Unit of the losses, if it is known.
    """

    title: str
    subtitle: str
    seeds: Seeds
    epochs: int
    losses: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    unit: str = ""


def draw(shown: Shown, events: Sequence[Event], path: Path) -> None:
    """Draw a run, finished or not, into ``path``; its suffix says how: .png, .svg or .pdf.

    Raises:
        ConfigError: as `check` does.
    """
    rows = spans(shown.seeds, events)
    if len(rows) > _MOST_ROWS:
        rows = {seed: row for seed, row in rows.items() if len(row) > 1} or rows
    lower = 0.9 + 0.26 * len(rows)
    figure = style.figure(path, 11.4, 4.8 + lower)
    panels = figure.subplot_mosaic(
        [["losses", "."], ["states", "rewards"]],
        width_ratios=(8.2, 1.8),
        height_ratios=(3.4, lower),
    )
    losses, states, earned = panels["losses"], panels["states"], panels["rewards"]
    losses.sharex(states)
    losses.tick_params(labelbottom=False)
    _draw_losses(figure, losses, shown, events)
    _draw_states(states, rows, shown.epochs, _alphas(events))
    earned.sharey(states)
    seeds = [(layer, seed) for layer, seed, _ in rows]
    draw_rewards(earned, seeds, events, shown.unit or "held-out loss")
    losses.set_title(shown.subtitle, fontsize=11, color=INK, loc="left", pad=10)
    style.title(figure, shown.title)
    style.save(figure, path)


def draw_log(events: Sequence[Event], path: Path) -> None:
    """Draw the run that wrote these events, as `draw`."""
    draw(shown_of_log(events), events, path)


def shown_of_log(events: Sequence[Event]) -> Shown:
    """Facts of a run from its log, also one of an older version, without ``run`` event."""
    facts = next((event.data for event in events if event.kind == "run"), {})
    seeds = [
        (site["layer"], seed_idx, blueprint)
        for site in facts.get("sites", ())
        for seed_idx, blueprint in enumerate(site["seeds"])
    ]
    chosen = [event.data for event in events if event.kind == "decision"]
    told = dict.fromkeys((data["layer"], data["seed"], data["blueprint"]) for data in chosen)
    epochs = 1 + max((e.data["epoch"] for e in events if e.kind == "epoch"), default=-1)
    ends = [event.data for event in events if event.kind in {"graft", "verdict"}]
    kept = sum(bool(data["kept"]) for data in ends)
    end = next((e.data["how"] for e in reversed(events) if e.kind == "end"), "")
    scope, run = (events[0].scope, events[0].run) if events else ("", "")
    named = [facts.get("model", scope), f"run {run}" if run not in ("", "run") else ""]
    if facts:
        named.append(f"seed {facts['seed']}")
    return Shown(
        title=", ".join(name for name in named if name),
        subtitle=f"{epochs} epochs{end and f', {end}'}; grafts: {kept} kept, "
        f"{len(ends) - kept} culled",
        seeds=seeds or sorted(told),
        epochs=epochs,
    )


def spans(seeds: Seeds, events: Iterable[Event]) -> dict[tuple[str, int, str], list[Span]]:
    """States over time by layer, seed and blueprint, up to the last epoch that ended."""
    epochs = 0
    changes: dict[tuple[str, int], list[tuple[int, SeedState]]] = {}
    for event in events:
        if event.kind == "epoch":
            epochs = event.data["epoch"] + 1
        elif event.kind == "lifecycle":
            change = (event.data["epoch"], SeedState(event.data["new"]))
            changes.setdefault((event.data["layer"], event.data["seed"]), []).append(change)
    return {
        (layer, seed_idx, blueprint): _spans_of(changes.get((layer, seed_idx), []), epochs)
        for layer, seed_idx, blueprint in seeds
    }


def _spans_of(changes: list[tuple[int, SeedState]], epochs: int) -> list[Span]:
    found, kept = [], 0
    edges = [(0, SeedState.DORMANT), *changes, (epochs, SeedState.DORMANT)]
    for (start, state), (end, _) in pairwise(edges):
        if min(end, epochs) > start:
            found.append(Span(start, min(end, epochs), state, kept))
        kept += state is SeedState.FOSSILIZED
    return found


def _alphas(events: Iterable[Event]) -> dict[tuple[str, int], dict[int, float]]:
    """Alphas by seed and epoch."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for event in events:
        for name, alpha in event.data.get("alphas", {}).items() if event.kind == "epoch" else ():
            layer, _, seed_idx = name.rpartition(":")
            found.setdefault((layer, int(seed_idx)), {})[event.data["epoch"]] = alpha
    return found


def _draw_losses(figure: "Figure", axes: "Axes", shown: Shown, events: Sequence[Event]) -> None:
    from matplotlib.transforms import offset_copy  # noqa: PLC0415 (an extra)

    control = dict(enumerate(shown.losses.get("control", ())))
    logged = {e.data["epoch"]: e.data["holdout_loss"] for e in events if e.kind == "epoch"}
    logged |= dict(enumerate(shown.losses.get("grown", ())))  # to the end, where the log has gaps
    grown = {epoch: loss for epoch, loss in logged.items() if loss is not None}
    static = dict(enumerate(shown.losses.get("static", ())))
    curves = {
        "control": (control, GREY, 1.6, "-"),
        "static": (static, INK, 1.4, style.DASHED),
        "grown": (grown, BLUE, 2.2, "-"),
    }
    for curve, colour, width, line in curves.values():
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=width, linestyle=line)
    for label, (marker, size, colour, points) in _MARKS.items():
        at = [epoch for epoch in _marked(events, label) if epoch in grown]
        axes.plot(
            at,
            [grown[epoch] for epoch in at],
            marker,
            transform=offset_copy(axes.transData, figure, y=points, units="points"),
            color=colour,
            label=label if at else None,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=4,
        )
    axes.set_ylabel(f"validation loss ({shown.unit})" if shown.unit else "held-out loss")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
    losses = [value for curve, *_ in curves.values() for value in curve.values()]
    if losses and min(losses) > 0 and max(losses) / min(losses) >= 4:
        few = max(losses) / min(losses) < 20
        style.log_scale(axes, (1, 1.5, 2, 3, 5, 7) if few else (1, 2, 5))
    ends = {
        name: (max(curve), curve[max(curve)], colour)
        for name, (curve, colour, *_) in curves.items()
        if curve
    }
    _name_curves(axes, ends)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper right", handletextpad=0.2)
    style.bare(axes)


def _name_curves(axes: "Axes", ends: dict[str, tuple[int, float, str]]) -> None:
    """Write name and last value at the end of each curve, apart even where the curves meet."""
    height = {
        name: axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1]
        * _LOSS_HEIGHT_POINTS
        for name, (x, y, _) in ends.items()
    }
    shift = _apart(height, _NAME_HEIGHT_POINTS)
    for name, (x, y, colour) in ends.items():
        axes.annotate(
            f"{name}\n{y:.3f}",
            (x, y),
            xytext=(8, shift[name]),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )


def _apart(height: Mapping[str, float], least: float) -> dict[str, float]:
    """Shifts after which no two heights are nearer than ``least``, in the same order."""
    order = sorted(height, key=lambda name: height[name])
    at = dict(height)
    for _ in range(_ROUNDS):
        for low, high in pairwise(order):
            overlap = max(0.0, least - (at[high] - at[low]))
            at[low], at[high] = at[low] - overlap / 2, at[high] + overlap / 2
    return {name: at[name] - height[name] for name in height}


def _marked(events: Sequence[Event], label: str) -> list[int]:
    """Epochs of the events that have this mark."""

    def has_mark(event: Event) -> bool:
        if label == "blending starts":
            return event.kind == "lifecycle" and event.data["new"] == SeedState.BLENDING
        if label == "host rolled back":
            return event.kind == "rollback"
        return event.kind == "graft" and event.data["kept"] == (label == "kernel kept")

    return [event.data["epoch"] for event in events if has_mark(event)]


def _draw_states(
    axes: "Axes",
    rows: dict[tuple[str, int, str], list[Span]],
    epochs: int,
    alphas: Mapping[tuple[str, int], Mapping[int, float]],
) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415 (an extra)
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    ramps = False
    for y, ((layer, seed_idx, _), row) in enumerate(rows.items()):
        alpha = alphas.get((layer, seed_idx), {})
        for span in row:
            axes.broken_barh(
                [(span.start - 0.5, span.end - span.start)],
                (y - 0.39, 0.78),
                facecolor=_look(span)[0],
                edgecolor="white",
                linewidth=0.6,
            )
            known = [at for at in range(span.start, span.end) if at in alpha]
            steps = [(at, alpha[at]) for at in known if span.state is SeedState.BLENDING]
            ramps |= len(steps) > 1
            if len(steps) > 1:
                axes.plot(
                    [at for at, _ in steps],
                    [y + 0.3 - 0.6 * height for _, height in steps],
                    color="white",
                    linewidth=1.4,
                )
    layers = [len(list(seeds)) for _, seeds in groupby(rows, key=lambda row: row[0])]
    for count in range(1, len(layers)):
        axes.axhline(sum(layers[:count]) - 0.5, color=PALE, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [seed_name(*row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.5, epochs - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch, from 0; a box is the state at its end")
    axes.tick_params(axis="y", length=0, labelsize=9)
    ramp = _STATES[SeedState.BLENDING]
    looks = dict.fromkeys([_DORMANT, *_STATES.values(), _DORMANT_BESIDE_KEPT])
    axes.legend(
        handles=[
            Patch(
                color=look[0], label=look[1] + (", line: alpha" if ramps and look == ramp else "")
            )
            for look in looks
        ],
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.005),
        borderaxespad=0.2,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    style.bare(axes)


def _look(span: Span) -> tuple[str, str]:
    return _STATES.get(span.state, _DORMANT_BESIDE_KEPT if span.kept else _DORMANT)
