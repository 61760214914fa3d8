"""Previews of the seeds of a run or a store, by the strategy that chose, at the end of the log."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

from esper.contracts.config import Config, Performance
from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.contracts.health import HealthSignal
from esper.contracts.selection import SelectionContext
from esper.runs import run_reader, store_address
from esper.runs.placebos import Placebos, of_events
from esper.services.tamiyo.assignment import Chooser, chooser_of, knowledge_of
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.preview import SeedPreview, preview
from esper.stores.addresses import shown
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES

Seed = tuple[str, int]
"""Layer and seed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScopePreview:
    """Decisions of one scope of a store, and a preview of its seeds.

    Attributes:
        scope: Name of the scope.
        strategy: Strategy that chose last.
        blueprints: Blueprint of each seed, layer by layer.
        previews: Preview of each seed, by the strategy at its default settings.
        decisions: Decisions as they were logged, each with the ``run`` that made it.
        placebos: Placebos that were judged.
    """

    scope: str
    strategy: str
    blueprints: Mapping[Seed, str]
    previews: Mapping[Seed, SeedPreview]
    decisions: Sequence[Mapping[str, Any]]
    placebos: Placebos


def preview_run(run: run_reader.Run, events: Sequence[Event]) -> dict[Seed, SeedPreview]:
    """Preview every seed of a run by its strategy and settings, as if the run went on.

    Of other runs on the same store, what they had written by the run's last event counts.

    Args:
        run: The run.
        events: Event log of the run.

    Raises:
        ConfigError: if its strategy is not installed here.
        StoreError: if the store cannot be read.
    """
    config = Config.model_validate(run.spec["config"])
    known = _until(events, run)
    chooser = chooser_of(config)
    layers: dict[str, dict[int, str]] = {}
    for layer, seed_idx, blueprint in run.slots:
        layers.setdefault(layer, {})[seed_idx] = blueprint
    tracker = _tracker(
        known, chooser, config.seed_selection.performance, run.spec["task"], run.spec["run"]
    )
    found: dict[Seed, SeedPreview] = {}
    for name, blueprints in layers.items():
        for seed_idx, blueprint in blueprints.items():
            tracker.bind(name, seed_idx, blueprint)
        context = _context(events, name, blueprints)
        seen = preview(chooser, tracker, name, list(blueprints), context, seed=run.spec["seed"])
        found |= {(name, seed_idx): one for seed_idx, one in seen.items()}
    return found


def preview_store(url: str, scope: str | None = None) -> list[ScopePreview]:
    """Preview the seeds of every scope of a store, by the strategy that chose last there.

    A store has neither the settings of a strategy nor the run seed: defaults and 0 are used.

    Args:
        url: As ``open_store`` takes it, or the path of a SQLite file.
        scope: Only this one; ``None`` for all.

    Raises:
        ConfigError: if it is no store, or nothing was chosen in it.
        StoreError: if it cannot be read.
    """
    by_scope: dict[str, list[Event]] = {}
    for event in store_address.read(url, scope):
        by_scope.setdefault(event.scope, []).append(event)
    found = [
        _scope(name, events) for name, events in by_scope.items() if run_reader.decisions(events)
    ]
    if not found:
        where = "" if scope is None else f" of scope {scope!r}"
        raise ConfigError(f"{shown(url)} has no choice{where} to show")
    return found


def document(found: ScopePreview) -> dict[str, Any]:
    """JSON document of a scope: the preview of each seed, and the latest decision."""
    return {
        "scope": found.scope,
        "strategy": found.strategy,
        "seeds": [
            {
                "layer": layer,
                "seed": seed_idx,
                "blueprint": found.blueprints[layer, seed_idx],
                "now": asdict(one),
            }
            for (layer, seed_idx), one in found.previews.items()
        ],
        "decisions": len(found.decisions),
        "latest_decision": run_reader.decision_summary(found.decisions[-1]),
        "placebos": asdict(found.placebos),
    }


def _scope(scope: str, events: Sequence[Event]) -> ScopePreview:
    decisions = [
        {**data, "run": event.run} for event in events for data in run_reader.decisions([event])
    ]
    strategy = STRATEGIES.create(decisions[-1]["strategy"])
    tracker = _tracker(events, strategy, Performance(), scope, "")
    blueprints: dict[Seed, str] = {}
    previews: dict[Seed, SeedPreview] = {}
    for name in tracker.layer_names:
        layer = tracker.layer(name)
        bound = {idx: layer.seeds[idx].blueprint for idx in sorted(layer.seeds)} if layer else {}
        if bound:
            seen = preview(strategy, tracker, name, list(bound), _context(events, name, bound))
            previews |= {(name, seed_idx): one for seed_idx, one in seen.items()}
            blueprints |= {(name, seed_idx): blueprint for seed_idx, blueprint in bound.items()}
    return ScopePreview(
        scope=scope,
        strategy=strategy.name,
        blueprints=blueprints,
        previews=previews,
        decisions=decisions,
        placebos=of_events(events),
    )


def _until(events: Sequence[Event], run: run_reader.Run) -> Sequence[Event]:
    if not run.spec["store"] or not events:
        return events
    every = store_address.read(run.spec["store"], run.spec["task"])
    last = max((i for i, event in enumerate(every) if event.run == run.spec["run"]), default=-1)
    return every[: last + 1]


def _tracker(
    events: Sequence[Event],
    chooser: Chooser,
    performance: Performance,
    scope: str,
    run: str,
) -> PerformanceTracker:
    store = MemoryStore()
    # Without their numbers: what is looked at may have holes.
    store.append([replace(event, writer="", number=-1) for event in events])
    return PerformanceTracker(
        window_size=performance.window_size,
        decay_factor=performance.decay_factor,
        store=store,
        scope=scope,
        run=run,
        begin=knowledge_of(chooser),
    )


def _context(
    events: Sequence[Event], layer: str, blueprints: Mapping[int, str]
) -> SelectionContext:
    epoch, layer_type, parameters = 0, "", dict[int, int]()
    health: HealthSignal | None = None
    for event in events:
        data = event.data
        epoch = max(epoch, data.get("epoch") or 0)
        if data.get("layer") != layer:
            continue
        if event.kind == "decision":
            layer_type = data.get("layer_type", layer_type)
        elif event.kind == "health":
            values: dict[str, Any] = {name: data.get(name) for name in HealthSignal.__slots__}
            health = HealthSignal(**{**values, "layer_name": layer})
        elif event.kind == "lifecycle" and data.get("parameters"):
            parameters[data["seed"]] = data["parameters"]
    return SelectionContext(
        current_epoch=epoch,
        layer_type=layer_type,
        health=health,
        blueprints=blueprints,
        parameters=parameters,
    )
