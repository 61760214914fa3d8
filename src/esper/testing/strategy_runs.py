"""Small runs that the laws of strategies look at: choices, outcomes, and what is known by then."""

import json
from collections.abc import Sequence
from functools import cache
from random import Random  # noqa: TID251 (the laws bring their own, seeded, world)

from esper.contracts.performance import PerformanceDelta, SeedPerformanceMetrics
from esper.contracts.selection import Decision, SelectionContext
from esper.records.draws import Draws
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import SelectionStrategy

LAYER = "fc1"
CONTEXT = SelectionContext(current_epoch=7, layer_type="Linear")
GAINS = (0.0, 0.010, 0.020, 0.005)
NOISE = 0.02
BLUEPRINTS = {0: "glu", 1: "gate", 2: "lowrank", 3: "conv"}


def earnings(
    selector: SeedSelector, gains: Sequence[float], *, choices: int, seed: int = 0
) -> list[float]:
    """Choose, measure and record; returns the true gain of each choice."""
    random, earned = Random(seed), []
    for epoch in range(choices):
        context = SelectionContext(current_epoch=epoch)
        seed_idx, _ = selector.select_seed_now(LAYER, range(len(gains)), context)
        delta = PerformanceDelta(reward=random.gauss(gains[seed_idx], NOISE))
        selector.performance_tracker.update_metrics_now(LAYER, seed_idx, delta)
        earned.append(gains[seed_idx])
    return earned


class TroubledLoop:
    """Loop over two layers whose outcomes come late, never or twice.

    ``like`` is a loop to continue: from the state of its selector, ``with_tracker`` also from that
    of its tracker.
    """

    def __init__(
        self,
        strategy: SelectionStrategy,
        tracker: PerformanceTracker,
        like: "TroubledLoop | None" = None,
        *,
        with_tracker: bool = False,
    ) -> None:
        self.selector = SeedSelector(strategy, tracker=tracker, seed=9)
        self.random, self.epoch = Random(6), 0
        self.waiting: list[Decision] = []
        if like is not None:
            if with_tracker:
                known = like.selector.performance_tracker.state_dict()
                tracker.load_state_dict(json.loads(json.dumps(known, allow_nan=False)))
            state = json.loads(json.dumps(like.selector.state_dict()))
            self.selector.load_state_dict(state)
            self.random.setstate(like.random.getstate())
            self.epoch, self.waiting = like.epoch, list(like.waiting)

    def go(self, choices: int) -> list[Decision]:
        """Choices so many; some outcomes arrive meanwhile."""
        made = []
        for _ in range(choices):
            self.epoch += 1
            context = SelectionContext(
                self.epoch, layer_type="Linear", blueprints=BLUEPRINTS, parameters={1: 30}
            )
            layer = ("fc1", "fc2")[self.epoch % 2]
            decision = self.selector.decide(layer, list(BLUEPRINTS), context)
            made.append(decision)
            self.selector.commit(layer, decision.seed_idx)
            self.selector.free(layer, decision.seed_idx, self.epoch)
            if self.random.random() < 0.9:  # else it never gets an outcome
                self.waiting.append(decision)
            if len(self.waiting) > 4:
                self._answer(self.waiting.pop(self.random.randrange(len(self.waiting))))
        return made

    def _answer(self, decision: Decision) -> None:
        delta = PerformanceDelta(reward=self.random.gauss(0.1 * decision.seed_idx, 0.2))
        for _ in range(1 + (self.random.random() < 0.2)):  # now and then twice
            self.selector.performance_tracker.update_metrics_now(
                decision.layer_name, decision.seed_idx, delta, decision=decision
            )


def step(selector: SeedSelector, layer: str, context: SelectionContext, random: Random) -> int:
    """One choice and its outcome; returns the seed."""
    seed_idx, _ = selector.select_seed_now(layer, list(BLUEPRINTS), context)
    delta = PerformanceDelta(reward=random.gauss(-float(seed_idx), 0.1))
    selector.performance_tracker.update_metrics_now(layer, seed_idx, delta)
    return seed_idx


def tracker_of(seed: int = 0, factor: float = 1.0, shift: float = 0.0) -> PerformanceTracker:
    """Tracker after 40 outcomes, each times a factor and shifted."""
    random, tracker = Random(seed), PerformanceTracker(window_size=8)
    for index in range(40):
        seed_idx = index if index < len(GAINS) else random.randrange(len(GAINS))
        reward = factor * random.gauss(GAINS[seed_idx], NOISE) + shift
        tracker.record_selection(LAYER, seed_idx)
        tracker.update_metrics_now(LAYER, seed_idx, PerformanceDelta(reward=reward))
    return tracker


def metrics_of(
    seed: int = 0, factor: float = 1.0, shift: float = 0.0
) -> dict[int, SeedPerformanceMetrics]:
    """Metrics of the tracker's layer."""
    return dict(_known(seed, factor, shift))


@cache  # one of the laws is that nobody changes them
def _known(seed: int, factor: float, shift: float) -> dict[int, SeedPerformanceMetrics]:
    return tracker_of(seed, factor, shift).get_layer_metrics(LAYER)


def choice_of(
    strategy: SelectionStrategy, metrics: dict[int, SeedPerformanceMetrics], number: int
) -> int:
    """Seed that a strategy chooses, given the number of the choice."""
    return strategy.decide([0, 1, 2, 3], metrics, CONTEXT, draws_of(number))[0]


def answer(tracker: PerformanceTracker, decision: Decision) -> None:
    """Outcome of a decision, larger for seeds of a larger index."""
    delta = PerformanceDelta(reward=0.01 * decision.seed_idx)
    tracker.update_metrics_now(LAYER, decision.seed_idx, delta, decision=decision)


def draws_of(number: int) -> Draws:
    """Random state of a choice."""
    return Draws(11, LAYER, number)
