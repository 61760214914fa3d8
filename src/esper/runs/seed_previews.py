"""Where the seeds stand: the strategy of a log, asked what it thinks at the log's end."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, final

from esper.contracts.config import Config, Performance
from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.contracts.health import HealthSignal
from esper.contracts.selection import SelectionContext
from esper.runs import run_reader as lookup
from esper.runs import store_address as addresses
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.preview import SeedOutlook, outlook
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy

Seat = tuple[str, int]
"""Layer and seed."""

_PLACE = {"layer_name", "epoch"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The choices of one scope of a store, and where its seeds stand.

    Attributes:
        scope: Whose history it is.
        strategy: Who chose last.
        blueprints: What each seed stands for, layer by layer.
        outlooks: What the strategy, by its default settings, thinks of each seed.
        decisions: Every choice, as it was logged, and ``run``, which made it.
    """

    scope: str
    strategy: str
    blueprints: Mapping[Seat, str]
    outlooks: Mapping[Seat, SeedOutlook]
    decisions: Sequence[Mapping[str, Any]]


def of_run(run: lookup.Run, events: Sequence[Event]) -> dict[Seat, SeedOutlook]:
    """What the run's strategy, as it was set, would think were the run to go on from its end.

    It knows what it knew then: of runs on the same store, what they had written by then.

    Args:
        run: The run.
        events: Its own log.

    Raises:
        ConfigError: if its strategy is not installed here.
        StoreError: if the store cannot be read.
    """
    config = Config.model_validate(run.spec["config"])
    known = _until(events, run)
    chooser = _chooser(config)
    layers: dict[str, dict[int, str]] = {}
    for layer, seed_idx, blueprint in run.slots:
        layers.setdefault(layer, {})[seed_idx] = blueprint
    tracker = _tracker(
        known, chooser, config.seed_selection.performance, run.spec["task"], run.spec["run"]
    )
    found: dict[Seat, SeedOutlook] = {}
    for name, blueprints in layers.items():
        for seed_idx, blueprint in blueprints.items():
            tracker.bind(name, seed_idx, blueprint)
        context = _context(events, name, blueprints)
        outlooks = outlook(chooser, tracker, name, list(blueprints), context, seed=run.spec["seed"])
        found |= {(name, seed_idx): one for seed_idx, one in outlooks.items()}
    return found


def of_store(url: str, scope: str | None = None) -> list[History]:
    """Where the seeds of every scope of a store stand, by who chose last there.

    A store does not say how a strategy was set or which seed its selector had; by default
    settings, then, and from seed 0.

    Args:
        url: As ``open_store`` takes it, or the path of a SQLite file.
        scope: Only this one; ``None`` for all.

    Raises:
        ConfigError: if it is no store, or nothing was chosen in it.
        StoreError: if it cannot be read.
    """
    by_scope: dict[str, list[Event]] = {}
    for event in addresses.read(url, scope):
        by_scope.setdefault(event.scope, []).append(event)
    found = [
        _history(name, events) for name, events in by_scope.items() if lookup.decisions(events)
    ]
    if not found:
        where = "" if scope is None else f" of scope {scope!r}"
        raise ConfigError(f"{addresses.without_password(url)} has no choice{where} to show")
    return found


def document(history: History) -> dict[str, Any]:
    """A history for machines: where each seed stands, and the latest decision."""
    return {
        "scope": history.scope,
        "strategy": history.strategy,
        "seeds": [
            {
                "layer": layer,
                "seed": seed_idx,
                "blueprint": history.blueprints[layer, seed_idx],
                "now": asdict(one),
            }
            for (layer, seed_idx), one in history.outlooks.items()
        ],
        "decisions": len(history.decisions),
        "latest_decision": lookup.told(history.decisions[-1]),
    }


def _history(scope: str, events: Sequence[Event]) -> History:
    decisions = [
        {**data, "run": event.run} for event in events for data in lookup.decisions([event])
    ]
    strategy = STRATEGIES.create(decisions[-1]["strategy"])
    tracker = _tracker(events, strategy, Performance(), scope, "")
    blueprints: dict[Seat, str] = {}
    outlooks: dict[Seat, SeedOutlook] = {}
    for name in tracker.layer_names:
        layer = tracker.layer(name)
        bound = {idx: layer.seeds[idx].blueprint for idx in sorted(layer.seeds)} if layer else {}
        if bound:
            seen = outlook(strategy, tracker, name, list(bound), _context(events, name, bound))
            outlooks |= {(name, seed_idx): one for seed_idx, one in seen.items()}
            blueprints |= {(name, seed_idx): blueprint for seed_idx, blueprint in bound.items()}
    return History(
        scope=scope,
        strategy=strategy.name,
        blueprints=blueprints,
        outlooks=outlooks,
        decisions=decisions,
    )


def _until(events: Sequence[Event], run: lookup.Run) -> Sequence[Event]:
    if not run.spec["store"] or not events:
        return events
    every = addresses.read(run.spec["store"], run.spec["task"])
    last = max((i for i, event in enumerate(every) if event.run == run.spec["run"]), default=-1)
    return every[: last + 1]


def _chooser(config: Config) -> SelectionStrategy | Assignment:
    if config.ab_test is not None:
        return Assignment.of(config.ab_test)
    name = config.seed_selection.strategy
    return STRATEGIES.create(name, **config.seed_selection.settings_of(name))


def _tracker(
    events: Sequence[Event],
    chooser: SelectionStrategy | Assignment,
    performance: Performance,
    scope: str,
    run: str,
) -> PerformanceTracker:
    store = MemoryStore()
    store.append(events)
    tracker = PerformanceTracker(
        window_size=performance.window_size,
        decay_factor=performance.decay_factor,
        store=store,
        scope=scope,
        run=run,
    )
    SeedSelector(chooser, tracker=tracker)  # has the tracker learn what the strategy needs
    return tracker


def _context(
    events: Sequence[Event], layer: str, blueprints: Mapping[int, str]
) -> SelectionContext:
    epoch, layer_type, parameters = 0, "", dict[int, int]()
    health: HealthSignal | None = None
    measured = [item.name for item in fields(HealthSignal) if item.name not in _PLACE]
    for event in events:
        data = event.data
        epoch = max(epoch, data.get("epoch") or 0)
        if data.get("layer") != layer:
            continue
        if event.kind == "decision":
            layer_type = data.get("layer_type", layer_type)
        elif event.kind == "health":
            values = {name: data.get(name) for name in measured}
            health = HealthSignal(layer_name=layer, epoch=data["epoch"], **values)
        elif event.kind == "lifecycle" and data.get("parameters"):
            parameters[data["seed"]] = data["parameters"]
    return SelectionContext(
        current_epoch=epoch,
        layer_type=layer_type,
        health=health,
        blueprints=blueprints,
        parameters=parameters,
    )
