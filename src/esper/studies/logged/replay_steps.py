"""Steps of a replay: every logged decision, put to another strategy as it was.

The strategy sees the same viable seeds, the history at that time and the layer's health.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from esper.contracts.events import Event
from esper.contracts.health import HealthSignal
from esper.contracts.propensities import Propensities, spread
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.fold import fold
from esper.records.history import History
from esper.records.seed import SeedRecord
from esper.strategies import SelectionStrategy
from esper.strategies.first_try import first_try
from esper.studies.logged.logs import Log

FLOOR = 1e-3
"""Logged propensity below which a choice counts as impossible: it hardly ever is in a log."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Logged decision with its outcome, and the other strategy's probabilities.

    Attributes:
        decision_id: Id of the decision.
        chooser: Strategy that chose, and the arm, if it was part of an A/B test.
        seed_idx: The chosen seed.
        reward: Reward of the outcome; 0 of a failure.
        propensity: Logged probability of the chosen seed.
        chances: Probability with which the other strategy would have chosen each viable seed.
        gap: Probability with which it would have chosen a seed that could not have been logged.
        error: Largest error of the two strategies' probabilities.
        expected: Reward that the model expects of the other strategy here.
        predicted: Reward that the model expects of the chosen seed.
        shared: Whether any strategy would have chosen alike: a fallback, or a first try that the
            other strategy would have made too.
        first_try: Whether the logged choice was a first try.
    """

    decision_id: str
    chooser: str
    seed_idx: int
    reward: float
    propensity: float
    chances: Mapping[int, float]
    gap: float
    error: float
    expected: float
    predicted: float
    shared: bool
    first_try: bool

    @property
    def weight(self) -> float:
        """Probability of the chosen seed by the other strategy, over the logged one."""
        return self.chances.get(self.seed_idx, 0.0) / self.propensity


def steps(log: Log, strategy: SelectionStrategy) -> tuple[int, list[Step]]:
    """Put a log's decisions to ``strategy``; returns their number, and those with an outcome."""
    player = _Player(log, strategy)
    for event in log.events:
        player.take(event)
    return player.decisions, player.closed


@final
@dataclass(slots=True)
class _Means:
    """Mean reward by layer kind and blueprint, shrunk to the mean of all by one outcome."""

    sums: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    count: int = 0
    total: float = 0.0

    def of(self, key: tuple[str, str]) -> float:
        if not self.count:
            return 0.0
        count, total = self.sums.get(key, (0, 0.0))
        return (total + self.total / self.count) / (count + 1)

    def learn(self, key: tuple[str, str], reward: float) -> None:
        count, total = self.sums.get(key, (0, 0.0))
        self.sums[key] = (count + 1, total + reward)
        self.count += 1
        self.total += reward


@final
class _Player:
    """Replay of one log: decisions see the history before them, never a later event."""

    def __init__(self, log: Log, strategy: SelectionStrategy) -> None:
        self.log = log
        self.strategy = strategy
        performance = log.performance
        begin = None if type(strategy).begin is SelectionStrategy.begin else strategy.begin
        self.history = History(performance.window_size, performance.decay_factor, begin)
        self.decisions = 0
        self.means = _Means()
        self.health: dict[str, HealthSignal] = {}
        self.kinds: dict[str, tuple[str, str]] = {}
        self.open: dict[str, dict[str, Any]] = {}
        self.closed: list[Step] = []
        # Blueprints and sizes are no outcomes, so those that the log has later may be used.
        self.blueprints: dict[str, dict[int, str]] = {}
        self.parameters: dict[str, dict[int, int]] = {}
        for event in log.events:
            data = event.data
            if event.kind == "decision":
                self.blueprints.setdefault(data["layer"], {}).setdefault(
                    data["seed"], data["blueprint"]
                )
            elif event.kind == "lifecycle" and data.get("parameters"):
                self.parameters.setdefault(data["layer"], {}).setdefault(
                    data["seed"], data["parameters"]
                )

    def take(self, event: Event) -> None:
        data = event.data
        if event.kind == "health":
            values = {name: data.get(name) for name in HealthSignal.__slots__}
            signal = HealthSignal(**{**values, "layer_name": data["layer"]})
            self.health[signal.layer_name] = signal
        elif event.kind == "decision":
            if "propensity" in data and data["decision"]:
                self._decision(event)
            self.blueprints[data["layer"]][data["seed"]] = data["blueprint"]
        elif event.kind in ("outcome", "failure"):
            self._outcome(data)
        fold(self.history, event)

    def _decision(self, event: Event) -> None:
        data = event.data
        layer, seed = data["layer"], data["seed"]
        viable = sorted({seed, *data["alternatives"]})
        keys = {one: self._key(data, one) for one in viable}
        self.kinds[data["decision"]] = keys[seed]
        if self.log.runs is not None and event.run not in self.log.runs:
            return
        if data.get("audition"):  # the outcome is that of the best of several, not of a choice
            return
        self.decisions += 1
        logged = _logged(data, viable)
        target, shared = self._target(layer, viable, data)
        error = max(logged.error, target.error)
        floor = max(FLOOR, logged.error)
        predicted = self.means.of(keys[seed])
        self.open[data["decision"]] = {
            "decision_id": data["decision"],
            "chooser": data["strategy"] + (f" (arm {data['ab']['arm']})" if data.get("ab") else ""),
            "propensity": data["propensity"],
            "seed_idx": seed,
            "chances": target.by_seed,
            "gap": 0.0 if shared else sum(target.of(s) for s in viable if logged.of(s) < floor),
            "error": error,
            # Where any strategy would have chosen alike, the model has nothing to correct.
            "expected": predicted
            if shared
            else sum(target.of(one) * self.means.of(keys[one]) for one in viable),
            "predicted": predicted,
            "shared": shared,
            "first_try": bool(_first_tries(data)),
        }

    def _target(
        self, layer: str, viable: list[int], data: Mapping[str, Any]
    ) -> tuple[Propensities, bool]:
        """Probabilities of the strategy, and whether any strategy would have had the same."""
        if data["fallback"]:
            return Propensities({data["seed"]: 1.0}), True
        known = self.history.layers.get(layer)
        metrics: Mapping[int, SeedRecord] = known.seeds if known else {}
        context = self._context(layer, data)
        logged = _first_tries(data)
        if logged and self.strategy.learns:
            # As logged: events of other runs at that time may come later in the log.
            sure = self.strategy.knows(viable, metrics, context)
            untried = [seed for seed in logged if seed not in sure]
        else:  # the strategy of the log, or this one, needs none
            first = first_try(self.strategy, viable, metrics, Draws(0, layer, 0), context)
            untried = list(first[1].scores) if first else []
        if untried:
            return Propensities(dict.fromkeys(untried, 1 / len(untried))), untried == logged
        return self.strategy.propensities(viable, metrics, context), False

    def _context(self, layer: str, data: Mapping[str, Any]) -> SelectionContext:
        return SelectionContext(
            current_epoch=max(data["epoch"], 0),
            layer_type=data.get("layer_type", ""),
            health=self.health.get(layer),
            blueprints={
                slot: name for slot, name in self.blueprints.get(layer, {}).items() if name
            },
            parameters=self.parameters.get(layer, {}),
        )

    def _outcome(self, data: Mapping[str, Any]) -> None:
        decision_id = data["decision"]
        key = self.kinds.pop(decision_id, None)  # gone: answered before
        if key is None:
            return
        reward = float(data.get("reward", 0.0))
        self.means.learn(key, reward)
        if decision_id in self.open:
            self.closed.append(Step(**self.open.pop(decision_id), reward=reward))

    def _key(self, data: Mapping[str, Any], seed: int) -> tuple[str, str]:
        blueprint = self.blueprints.get(data["layer"], {}).get(seed, "")
        if blueprint:
            return data.get("layer_type", ""), blueprint
        return data["layer"], str(seed)  # nothing is bound: the slot stands for itself


def _first_tries(data: Mapping[str, Any]) -> list[int]:
    """Untried seeds of a first try; none if a strategy decided."""
    untried = [int(seed) for seed, score in data["scores"].items() if score is None]
    return untried if len(untried) == len(data["scores"]) else []


def _logged(data: Mapping[str, Any], viable: Sequence[int]) -> Propensities:
    chances = data.get("propensities")
    if chances is not None:
        by_seed = {int(seed): chance for seed, chance in chances.items()}
        return Propensities(by_seed, data.get("propensity_error", 0.0))
    # An older log has the chosen seed's alone: if that is < 1, any other was possible.
    known = spread({data["seed"]: data["propensity"]}, viable)
    return Propensities(known.by_seed)
