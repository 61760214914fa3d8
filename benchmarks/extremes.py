"""Scores after ten million outcomes of a layer, tiny or huge: all finite?

All strategies learn from one stream, as the arms of an A/B test do, and each is asked after every
tenth of it; ``neural``, which trains networks on the way, from a hundredth. Takes half an hour:
``nice python -m benchmarks.extremes [outcomes] [strategy ...]`` with less of either takes less.
"""

import sys
from collections.abc import Sequence
from math import isfinite
from random import Random  # noqa: TID251 (test data, seeded)
from time import perf_counter

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.strategies import STRATEGIES

OUTCOMES = 10_000_000
FACTORS = (1e-12, 1e12)
SEEDS = [0, 1, 2, 3, 4, 5, 6, 7]
_LOOKS = 10
_SLOW = ("neural",)

Row = tuple[str, str, str]
"""Measure, value, goal."""


def rows(outcomes: int = OUTCOMES, names: Sequence[str] = ()) -> list[Row]:
    """Widest score of each strategy, for tiny and for huge rewards."""
    names = names or STRATEGIES.names()
    quick = [name for name in names if name not in _SLOW]
    made = [row for factor in FACTORS for row in learn(factor, outcomes, quick)] if quick else []
    for name in _SLOW:
        if name in names:
            made += [row for factor in FACTORS for row in learn(factor, outcomes // 100, [name])]
    return made


def learn(factor: float, outcomes: int, names: Sequence[str]) -> list[Row]:
    """Let the strategies learn from rewards of one size; the widest score of each at any look."""
    arms = {name: STRATEGIES.create(name) for name in names}
    everyone = Assignment("extremes", {**arms, "none": STRATEGIES.create("random")})
    tracker = PerformanceTracker()
    tracker.follow(everyone.begin)
    stream, widest = _stream(factor), dict.fromkeys(arms, 0.0)
    began, done = perf_counter(), 0
    for look in range(_LOOKS):
        for number in range(outcomes // _LOOKS):
            seed_idx, delta = stream[(number * 7919 + look) % len(stream)]
            tracker.update_metrics_now("fc1", seed_idx, delta)
        done += outcomes // _LOOKS
        for name in arms:
            widest[name] = max(widest[name], _widest_score(everyone, tracker, name, done))
    took = (perf_counter() - began) / outcomes * 1e6
    return [
        (f"{name}: {outcomes:.0e} rewards of {factor:g}", f"|score| <= {size:.4g}", "finite")
        for name, size in widest.items()
    ] + [
        (
            f"{', '.join(names) if len(names) == 1 else 'all'}, rewards of {factor:g}: an outcome",
            f"{took:.1f} µs",
            "",
        )
    ]


def _stream(factor: float) -> list[tuple[int, PerformanceDelta]]:
    random = Random(0)
    drawn = [(random.randrange(len(SEEDS)), random.gauss(0.0, 1.0)) for _ in range(65_536)]
    return [
        (seed_idx, PerformanceDelta(reward=factor * (0.2 * seed_idx + noise)))
        for seed_idx, noise in drawn
    ]


def _widest_score(test: Assignment, tracker: PerformanceTracker, name: str, done: int) -> float:
    layer = tracker.layer("fc1")
    if layer is None:
        raise AssertionError("nothing was learnt")
    context, draws = SelectionContext(done), Draws(0, "fc1", done)
    seen = test.seen_by(name, layer.seeds)
    _, reason = test.arms[name].decide(SEEDS, seen, context, draws)
    scores, chances = reason.scores.values(), reason.propensities.values()
    if not all(map(isfinite, scores)) or not abs(sum(chances) - 1) < 0.02:
        raise AssertionError(f"{name}, {done} outcomes: scores {scores}, propensities {chances}")
    return max(map(abs, scores))


if __name__ == "__main__":
    asked = int(float(sys.argv[1])) if len(sys.argv) > 1 else OUTCOMES
    for row in rows(asked, sys.argv[2:]):
        print(*row, sep=" | ", flush=True)
