"""Replay: what would another strategy have earned, told from the logs of the one that chose.

Every logged decision is put to the other strategy as it was: the same viable seeds, the history
that was known at that time, the layer's health. Its probabilities, over those that were logged,
weigh the outcome (`off_policy`).

What is estimated is the mean reward of choices made *once each from the logged histories*. That a
strategy would have learnt faster or slower from its own choices is not in it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from esper.contracts.errors import ConfigError
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
from esper.studies.logged.off_policy import Array, Estimate, effective_sample_size, estimates

FLOOR = 1e-3
"""A logged propensity below this is as good as 0: such a choice hardly ever stands in a log."""

LARGEST_GAP = 0.01
"""Share of the strategy's choices that may fall on seeds the log could not have chosen."""

LEAST_SAMPLE = 30.0
"""Effective sample size below which an interval would be a guess."""

_LOG_ANEW = (
    "Log data that can be replayed with a strategy that leaves every seed a chance: "
    "seed_selection.strategy: epsilon_greedy (epsilon 0.1 or more, decay_rate 1.0), thompson or "
    "random, or an ab_test with such an arm"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One logged decision with its outcome, and what the other strategy would have done.

    Attributes:
        decision_id: Which.
        chooser: The strategy that chose, and the arm, if it was part of an A/B test.
        seed_idx: The chosen seed.
        reward: What came of it.
        propensity: Logged probability of what was chosen.
        chances: Probability with which the other strategy would have chosen each viable seed.
        gap: Probability with which it would have chosen what the log could not.
        error: Largest error of the two strategies' probabilities.
        expected: What the reward model expects of the other strategy here.
        predicted: What it expects of what was chosen.
        shared: Whether no strategy had a say: a fallback, or a first try that the other strategy
            would have made too.
        first_try: Whether the log's choice was a first try.
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
        """How much more likely the other strategy was to choose the same."""
        return self.chances.get(self.seed_idx, 0.0) / self.propensity


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the logs say about a strategy, or why they cannot.

    Attributes:
        strategy: The strategy that was asked about.
        choosers: The strategies that made the logged decisions.
        decisions: Logged decisions.
        outcomes: Those whose outcome is known; only they count.
        left_out: Why the decisions of some choosers, or some first tries, do not count.
        used: Outcomes that do.
        shared: Those of them in which the strategy would have had no say: first tries, fallbacks.
        gap: Mean probability, in those that count, with which the strategy would have chosen what
            the log could not; in all, if none do.
        sample: Effective sample size.
        own_sample: The same without those that are shared; whether there is an estimate goes by it.
        largest_weight: The largest share of one decision in the total weight.
        propensity_error: Largest error of a propensity that was used.
        estimates: Logged mean, ips, snips, dr; empty if refused.
        refusal: Why there is no estimate; empty if there is.
    """

    strategy: str
    choosers: tuple[str, ...]
    decisions: int
    outcomes: int
    left_out: Mapping[str, str]
    used: int
    shared: int
    gap: float
    sample: float
    own_sample: float
    largest_weight: float
    propensity_error: float
    estimates: tuple[Estimate, ...]
    refusal: str = ""


def replay(logs: Iterable[Log], strategy: SelectionStrategy) -> Replay:
    """Estimate from logs what ``strategy`` would have earned.

    Raises:
        ConfigError: if there is no decision in the logs, or none has an outcome.
        StoreError: if an event cannot be read.
    """
    decisions, found = 0, list[Step]()
    for log in logs:
        made, some = steps(log, strategy)
        decisions += made
        found.extend(some)
    if not decisions:
        raise ConfigError("there is no decision in these logs; nothing was chosen, or elsewhere")
    if not found:
        raise ConfigError(
            f"none of the {decisions} decisions in these logs has an outcome yet; wait for one"
        )
    # What was logged and what would have been chosen decide, not what came of it: this is no bias.
    kept = [step for step in found if not (step.first_try and step.gap > FLOOR)] or found
    left_out = _left_out(kept, strategy.name)
    usable = [step for step in kept if step.chooser not in left_out]
    used = usable or kept
    weights = np.array([step.weight for step in used])
    sample = effective_sample_size(weights)
    own_sample = effective_sample_size(np.array([one.weight for one in used if not one.shared]))
    refusal = "" if usable else f"{'; '.join(left_out.values())}. {_LOG_ANEW}"
    if usable and own_sample < LEAST_SAMPLE:
        refusal = _too_few(used, own_sample, strategy.name)
    return Replay(
        strategy=strategy.name,
        choosers=tuple(dict.fromkeys(step.chooser for step in found)),
        decisions=decisions,
        outcomes=len(found),
        left_out=left_out | _first_tries_left_out(len(found) - len(kept), strategy.name),
        used=len(usable),
        shared=sum(step.shared for step in usable),
        gap=_mean_gap(used),
        sample=sample if usable else 0.0,
        own_sample=own_sample if usable else 0.0,
        largest_weight=float(weights.max() / weights.sum()) if weights.any() else 0.0,
        propensity_error=max(step.error for step in used),
        estimates=() if refusal else tuple(_estimates(used, weights)),
        refusal=refusal,
    )


def _too_few(used: Sequence[Step], sample: float, name: str) -> str:
    shared = sum(step.shared for step in used)
    if len(used) - shared < LEAST_SAMPLE:
        first = f", {shared} of them of first tries, alike for every strategy" if shared else ""
        return (
            f"there are too few outcomes: {len(used)}{first}; at least {LEAST_SAMPLE:.0f} are "
            "needed in which the strategy has a say. Give more runs, or longer ones"
        )
    return (
        f"the log agrees with {name} too seldom: {len(used)} outcomes count as {sample:.1f} where "
        f"it has a say, at least {LEAST_SAMPLE:.0f} are needed. Give more runs. {_LOG_ANEW}"
    )


def _estimates(used: Sequence[Step], weights: Array) -> list[Estimate]:
    rewards, expected, predicted = (
        np.array([getattr(step, name) for step in used])
        for name in ("reward", "expected", "predicted")
    )
    return estimates(rewards, weights, expected, predicted)


def _first_tries_left_out(count: int, name: str) -> dict[str, str]:
    """What is said of first tries that would have been no first tries."""
    if not count:
        return {}
    tries = "1 first try" if count == 1 else f"{count} first tries"
    return {
        "first tries": f"{tries} of seeds of which {name} would have known, and might have chosen "
        "another"
    }


def _left_out(found: Sequence[Step], name: str) -> dict[str, str]:
    """Choosers in whose decisions the strategy's own choices could not have stood.

    Who chose says nothing of what came of it, so leaving out all of his decisions is no bias.
    """
    why = {}
    for chooser in dict.fromkeys(step.chooser for step in found):
        theirs = [step for step in found if step.chooser == chooser]
        gap = _mean_gap(theirs)
        if gap > LARGEST_GAP:
            certain = all(step.propensity >= 1 - 1e-9 for step in theirs if not step.shared)
            because = "it is deterministic" if certain else "their logged probability is 0"
            why[chooser] = (
                f"{gap:.1%} of what {name} would have chosen could never stand in the log of "
                f"{chooser}: {because}"
            )
    return why


def _mean_gap(found: Sequence[Step]) -> float:
    return float(np.mean([step.gap for step in found]))


def steps(log: Log, strategy: SelectionStrategy) -> tuple[int, list[Step]]:
    """Put every decision of a log to ``strategy``; the number of decisions, and those answered."""
    player = _Player(log, strategy)
    for event in log.events:
        player.take(event)
    return player.decisions, list(player.answered())


@final
@dataclass(slots=True)
class _Means:
    """Mean reward by (layer kind, blueprint), leaning on the mean of all by one outcome."""

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
    """Goes through one log, always knowing what was known then, never what came later."""

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
        self.closed: list[dict[str, Any]] = []
        # What stands in a slot, and its size, is no outcome: what the log says later may be used.
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

    def answered(self) -> Iterator[Step]:
        for values in self.closed:
            yield Step(**values)

    def _decision(self, event: Event) -> None:
        data = event.data
        layer, seed = data["layer"], data["seed"]
        viable = sorted({seed, *data["alternatives"]})
        keys = {one: self._key(data, one) for one in viable}
        self.kinds[data["decision"]] = keys[seed]
        if self.log.runs is not None and event.run not in self.log.runs:
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
            # Where all would have done the same, there is nothing for a model to make up for.
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
        """How the strategy would have chosen, and whether it would have had no say in it either."""
        if data["fallback"]:
            return Propensities({data["seed"]: 1.0}), True
        known = self.history.layers.get(layer)
        metrics: Mapping[int, SeedRecord] = known.seeds if known else {}
        context = self._context(layer, data)
        logged = _first_tries(data)
        if logged:
            # As the log has it: what other runs did at that time may stand in it before.
            sure = self.strategy.knows(viable, metrics, context)
            untried = [seed for seed in logged if seed not in sure]
        else:  # by a strategy that needs none; this one may
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
            self.closed.append({**self.open.pop(decision_id), "reward": reward})

    def _key(self, data: Mapping[str, Any], seed: int) -> tuple[str, str]:
        blueprint = self.blueprints.get(data["layer"], {}).get(seed, "")
        if blueprint:
            return data.get("layer_type", ""), blueprint
        return data["layer"], str(seed)  # nothing is bound: the slot stands for itself


def _first_tries(data: Mapping[str, Any]) -> list[int]:
    """The seeds that were to be tried first; none if a strategy decided."""
    untried = [int(seed) for seed, score in data["scores"].items() if score is None]
    return untried if len(untried) == len(data["scores"]) else []


def _logged(data: Mapping[str, Any], viable: Sequence[int]) -> Propensities:
    chances = data.get("propensities")
    if chances is not None:
        by_seed = {int(seed): chance for seed, chance in chances.items()}
        return Propensities(by_seed, data.get("propensity_error", 0.0))
    # An older log has the chosen seed's alone: certain, or every other may have been possible.
    known = spread({data["seed"]: data["propensity"]}, viable)
    return Propensities(known.by_seed)
