"""Differences of pairs, and work to equal accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from benchmarks.growth.arms.outcome import Outcome

DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences with its bootstrap 95 % interval; of one pair there is none."""

    mean: float
    low: float
    high: float
    pairs: int

    @override
    def __str__(self) -> str:
        if self.pairs == 1:
            return f"{self.mean:+.2f} (one pair)"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Mean of ours less theirs, pair by pair."""
    pairs = np.subtract(ours, theirs)
    draws = np.random.default_rng(0).choice(pairs, size=(DRAWS, len(pairs))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Difference(float(pairs.mean()), float(low), float(high), len(pairs))


def share_to_reach(ours: Outcome, theirs: Outcome) -> float:
    """Share of their work after which we first have their last validation accuracy; else inf."""
    reached = (
        spent
        for spent, accuracy in zip(ours.spent, ours.curve, strict=True)
        if accuracy >= theirs.curve[-1]
    )
    return next(reached, math.inf) / theirs.flops


def times(share: float) -> str:
    """A share of work in words; infinity is ``never``."""
    return "never" if math.isinf(share) else f"{share:.2f}"
