"""Worths: what seeds earn relative to an average one of their run at that moment.

Within a run rewards fall tenfold, whichever seed earns them; seeds at one moment differ two- to
threefold. An audition measures several seeds at one moment, so the time that they share drops out.
A gain is learnt in units of what an average seed of this run earns now, so that what one layer and
run learn serves another, on a task with other losses.

The worth of a seed is a sum of independent normal effects about 1: of its layer, of its kind (layer
type and blueprint), and of the two together. So a Gaussian process over pairs of layer and kind
says what all measurements so far make of any seed, measured or not.

Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, section 2.2, equations 2.25
and 2.26; Searle, Casella & McCulloch (1992), Variance Components, section 3.2 (crossed effects).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt

from esper.contracts.audition import FADING

OF_LAYER, OF_KIND, OF_BOTH, NOISE = 0.3, 0.15, 0.15, 0.2
"""Variances of the effects, and of one measurement about their sum beyond its standard error."""

_PACE: Final = 0.4, 0.7
"""Weight of the newest measurement in a run's unit, on a logarithmic scale: of one seed, of several
at one moment."""

_LOWEST, _HIGHEST, _MODEST = -2.0, 5.0, 0.2
"""Limits of one measurement; smallest expectation that tells what an average seed would earn."""

_HEAVIEST: Final = 60.0
"""Largest precision of a pair, so that what was learnt long ago can be unlearnt."""

_RUNS, _PAIRS = 256, 400
"""Runs whose units are remembered; pairs, the best known, that a posterior is made of."""

Pair = tuple[str, str]
"""Layer and kind."""

Numbers = npt.NDArray[np.float64]


class Gain(NamedTuple):
    """Gain of one seed, in the reward's own units, and its standard error."""

    pair: Pair
    gain: float
    stderr: float


@dataclass(slots=True)
class Unit:
    """Run's unit; 0 before the first measurement. Kernels of each layer that earned something."""

    size: float
    grafts: dict[str, int]


@final
class RelativeWorths:
    """Measurements of a history, pair by pair, and the units of its runs.

    Attributes:
        taught: True if any run has auditioned seeds.
    """

    __slots__ = ("_pairs", "_runs", "taught")

    def __init__(self) -> None:
        self.taught = False
        self._pairs: dict[Pair, tuple[float, float]] = {}  # precision, precision-weighted sum
        self._runs: dict[str, Unit] = {}

    def learn(self, run: str, gains: Sequence[Gain]) -> None:
        """Learn gains of one moment, and move the run's unit.

        The unit moves towards the mean gain over its expectation: by 0.7 of the way on a
        logarithmic scale, or by 0.4 if it is the gain of one seed.
        """
        unit = self._runs.pop(run, None) or Unit(0.0, {})
        self._runs[run] = unit
        while len(self._runs) > _RUNS:
            del self._runs[next(iter(self._runs))]
        pairs = [gain.pair for gain in gains]
        faded = np.array([FADING ** unit.grafts.get(layer, 0) for layer, _ in pairs])
        expected = float(np.mean(self.posterior(pairs)[0] * faded))
        size = float(np.mean([gain.gain for gain in gains])) / max(expected, _MODEST)
        if size > 0:
            pace = _PACE[len(gains) > 1]
            unit.size = unit.size * (size / unit.size) ** pace if unit.size else size
        if unit.size:
            for gain, fade in zip(gains, faded, strict=True):
                self._add(gain, unit.size * float(fade))

    def count_graft(self, run: str, layer: str) -> None:
        """Note that a kernel of the layer earned something."""
        grafts = self._runs.setdefault(run, Unit(0.0, {})).grafts
        grafts[layer] = grafts.get(layer, 0) + 1

    def posterior(self, pairs: Sequence[Pair]) -> tuple[Numbers, Numbers]:
        """Mean and covariance of the worths of some pairs, (n,) and (n, n)."""
        prior = _covariance(pairs, pairs)
        known = sorted(self._pairs, key=lambda pair: -self._pairs[pair][0])[:_PAIRS]
        if not known:
            return np.ones(len(pairs)), prior
        precision, weighted = np.array([self._pairs[pair] for pair in known]).T
        between = _covariance(pairs, known)
        inside = _covariance(known, known) + np.diag(1 / precision)
        targets = np.column_stack([weighted / precision - 1, between.T])
        solved = np.linalg.solve(inside, targets)
        return 1 + between @ solved[:, 0], prior - between @ solved[:, 1:]

    def _add(self, gain: Gain, unit: float) -> None:
        value = max(_LOWEST, min(gain.gain / unit, _HIGHEST))
        precision = 1 / (NOISE + (gain.stderr / unit) ** 2)
        known, weighted = self._pairs.get(gain.pair, (0.0, 0.0))
        known, weighted = known + precision, weighted + precision * value
        kept = min(1.0, _HEAVIEST / known)
        self._pairs[gain.pair] = known * kept, weighted * kept

    def state_dict(self) -> dict[str, Any]:
        """All measurements and units, as JSON data."""
        return {
            "taught": self.taught,
            "pairs": [[*pair, *numbers] for pair, numbers in self._pairs.items()],
            "runs": [[run, unit.size, unit.grafts] for run, unit in self._runs.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; an error leaves all as it was."""
        pairs = {(str(a), str(b)): (float(n), float(sum_)) for a, b, n, sum_ in state["pairs"]}
        runs = {
            str(run): Unit(float(size), {str(k): int(v) for k, v in grafts.items()})
            for run, size, grafts in state["runs"]
        }
        if not np.isfinite([n for numbers in pairs.values() for n in numbers]).all():
            raise ValueError("a number is not finite")
        self.taught, self._pairs, self._runs = bool(state["taught"]), pairs, runs


def _covariance(one: Sequence[Pair], two: Sequence[Pair]) -> Numbers:
    layers, kinds = (
        np.array([a[at] for a in one])[:, None] == np.array([b[at] for b in two]) for at in (0, 1)
    )
    same: Numbers = OF_LAYER * layers + OF_KIND * kinds + OF_BOTH * (layers & kinds)
    return same.reshape(len(one), len(two))
