"""Worths: what seeds earn relative to an average one of their run at that moment.

Within a run rewards fall tenfold, whichever seed earns them; seeds at one moment differ two- to
threefold. An audition measures several seeds at one moment, so the time that they share drops out.
A gain is learnt in units of what an average seed of this run earns now, so that what one layer and
run learn serves another, on a task with other losses.

The worth of a seed is a sum of independent normal effects about 1: of its layer, of its blueprint,
of its kind (layer type and blueprint), and of layer and kind together. So a Gaussian process over
pairs of layer and kind says what all measurements so far make of any seed, measured or not. Of the
effects of a layer half are those of its relative depth, where that is known: layers side
by side, and those of another network as deep, are alike.

Of a frozen layer the gradient says before any try what its kernels promise: worths begin at 1 and
the lead that it gives them, and what is measured is read against that.

Where runs are so short that none teaches itself, as adaptations of one kernel each, outcomes alone
teach, and a run begins in the units of the one before.

Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, section 2.2, equations 2.25
and 2.26; Searle, Casella & McCulloch (1992), Variance Components, section 3.2 (crossed effects).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt

from esper.contracts.audition import FADING

OF_LAYER, OF_BLUEPRINT, OF_KIND, OF_BOTH, NOISE = 1.2, 0.4, 0.4, 0.6, 1.0
"""Variances of the effects, and of one measurement about their sum beyond its standard error."""

DEPTH_OF_LAYER, DEPTH_OF_BOTH, REACH = 0.6, 0.3, 0.2
"""Parts of the variances of a layer, and of layer and kind, that layers at its depth share; the
difference of depths, in shares of the network, from which on they share nothing."""

LEAD, LED = 0.8, 0.15
"""Weight of the gradient's promise in a worth; the part of the variances that is left where it is
known. Of frozen layers, whose kernels alone learn."""

_PACE: Final = 0.4, 0.7
"""Weight of the newest measurement in a run's unit, on a logarithmic scale: of one seed, of several
at one moment."""

_LOWEST, _HIGHEST, _MODEST = -2.0, 5.0, 0.2
"""Limits of one measurement; smallest expectation that tells what an average seed would earn."""

_STEP: Final = 4.0
"""Factor by which one measurement may seem to change a run's unit: a kernel that failed says little
of what the next one can earn."""

_CLEAR: Final = 2.0
"""Standard errors by which a kernel must have helped to make its layer's next one worth less."""

_HEAVIEST: Final = 60.0
"""Largest precision of a pair, so that what was learnt long ago can be unlearnt."""

_SHORT_RUNS, _SHORT = 5, 2
"""Runs, of so many outcomes at most on average, after which outcomes alone teach."""

_RUNS, _PAIRS = 256, 400
"""Runs whose units are remembered; pairs, the best known, that a posterior is made of."""

Pair = tuple[str, str]
"""Layer and kind."""

Leads = Mapping[Pair, float]
"""By pair, what its gradient promises beyond an average worth of 1."""

_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})
_NO_LEADS: Final[Leads] = MappingProxyType({})

Numbers = npt.NDArray[np.float64]


def lead_of(promise: float | None) -> float:
    """Worth beyond 1 that a promise, relative to the mean of all, leads one to expect.

    As its root, since what promises most is used up first; 0 where it is not known.

    Example:
        >>> [round(lead_of(promise), 2) for promise in (0.25, 1.0, 4.0, None)]
        [-0.4, 0.0, 0.8, 0.0]
    """
    return 0.0 if promise is None else LEAD * (sqrt(promise) - 1)


class Gain(NamedTuple):
    """Gain of one seed, in the reward's own units, its standard error, and the worth's lead."""

    pair: Pair
    gain: float
    stderr: float
    lead: float = 0.0


@dataclass(slots=True)
class Unit:
    """Units of one run, and the kernels of each layer that earned something.

    Attributes:
        shadow: What an average seed earns now in the shadow; 0 before the first audition.
        blended: What it earns once it is blended in, where it has trained for longer and the host
            with it: two to four times as much; 0 before the first outcome.
        grafts: Kernels by layer.
    """

    shadow: float
    blended: float
    grafts: dict[str, int]


@final
class RelativeWorths:
    """Measurements of a history, pair by pair, and the units of its runs.

    Attributes:
        taught: True if any run has auditioned seeds, or runs are short.
        short: True if runs are so short that outcomes alone teach.
    """

    __slots__ = ("_depths", "_early", "_leads", "_pairs", "_runs", "short", "taught")

    def __init__(self) -> None:
        self.taught = False
        self._early: list[tuple[str, Gain]] | None = []  # until it is known whether runs are short
        self.short = False
        self._depths: dict[str, float] = {}
        self._leads: dict[Pair, float] = {}
        self._pairs: dict[Pair, tuple[float, float]] = {}  # precision, precision-weighted sum
        self._runs: dict[str, Unit] = {}

    def locate(self, layer: str, depth: float | None) -> None:
        """Note the relative depth of a layer, in [0, 1]; ``None`` if it is not known."""
        if depth is not None:
            self._depths[layer] = depth

    def lead(self, pair: Pair, promise: float | None) -> float:
        """Lead that a promise gives a pair, from now on; without one that of the last promise."""
        if promise is not None:
            self._leads[pair] = lead_of(promise)
        return self._leads.get(pair, 0.0)

    def learn_audition(self, run: str, gains: Sequence[Gain]) -> None:
        """Learn what several seeds earned in the shadow at one moment."""
        unit = self._unit(run)
        expected, faded = self._expected(unit, gains)
        unit.shadow = _moved(unit.shadow, gains, expected, _PACE[1])
        self._add(gains, unit.shadow * faded)

    def learn_outcome(self, run: str, gain: Gain, *, audition: bool) -> None:
        """Learn what one seed earned once it was blended in, in the units of such gains.

        Args:
            run: Its run.
            gain: Its reward.
            audition: True if it won an audition, and is known from it: then only the run's unit
                moves.
        """
        unit = self._unit(run)
        expected, faded = self._expected(unit, [gain])
        unit.blended = _moved(unit.blended, [gain], expected, _PACE[0])
        if not audition and unit.blended:
            self._add([gain], unit.blended * faded)
        if gain.gain > _CLEAR * gain.stderr:
            layer = gain.pair[0]
            unit.grafts[layer] = unit.grafts.get(layer, 0) + 1

    def learn_untaught(self, run: str, gain: Gain) -> None:
        """Learn an outcome of a history without auditions, if its runs turn out to be short."""
        if self._early is None:
            return
        self._early.append((run, gain))
        if len({name for name, _ in self._early}) == _SHORT_RUNS:
            early, self._early = self._early, None
            self.taught = self.short = True
            for name, one in early:
                self.learn_outcome(name, one, audition=False)
        elif len(self._early) == _SHORT_RUNS * _SHORT:
            self._early = None

    def _unit(self, run: str) -> Unit:
        last = next(reversed(self._runs.values())).blended if self.short and self._runs else 0.0
        unit = self._runs.pop(run, None) or Unit(0.0, last, {})
        self._runs[run] = unit
        while len(self._runs) > _RUNS:
            del self._runs[next(iter(self._runs))]
        return unit

    def _expected(self, unit: Unit, gains: Sequence[Gain]) -> tuple[float, Numbers]:
        """Mean magnitude of the worths that some gains should show; how far each layer's faded."""
        pairs = [gain.pair for gain in gains]
        faded = np.array([FADING ** unit.grafts.get(layer, 0) for layer, _ in pairs])
        leads = {gain.pair: gain.lead for gain in gains if gain.lead}
        return float(np.mean(np.abs(self.posterior(pairs, leads=leads)[0] * faded))), faded

    def posterior(
        self,
        pairs: Sequence[Pair],
        depths: Mapping[str, float] = _NOTHING,
        leads: Leads = _NO_LEADS,
    ) -> tuple[Numbers, Numbers]:
        """Mean and covariance of the worths of some pairs, (n,) and (n, n).

        Args:
            pairs: Layers and kinds.
            depths: Relative depths of layers, beside those that are noted.
            leads: Leads of pairs that gradients promised now, before those that are noted.
        """
        depths, leads = {**self._depths, **depths}, {**self._leads, **leads}
        means = 1 + np.array([leads.get(pair, 0.0) for pair in pairs])
        prior = _covariance(pairs, pairs, depths, leads)
        known = sorted(self._pairs, key=lambda pair: -self._pairs[pair][0])[:_PAIRS]
        if not known:
            return means, prior
        precision, weighted = np.array([self._pairs[pair] for pair in known]).T
        between = _covariance(pairs, known, depths, leads)
        inside = _covariance(known, known, depths, leads) + np.diag(1 / precision)
        targets = np.column_stack([weighted / precision - 1, between.T])
        solved = np.linalg.solve(inside, targets)
        return means + between @ solved[:, 0], prior - between @ solved[:, 1:]

    def _add(self, gains: Sequence[Gain], units: Numbers) -> None:
        for gain, unit in zip(gains, units.tolist(), strict=True):
            value = max(_LOWEST, min(gain.gain / unit, _HIGHEST)) - gain.lead
            precision = 1 / (NOISE + (gain.stderr / unit) ** 2)
            known, weighted = self._pairs.get(gain.pair, (0.0, 0.0))
            known, weighted = known + precision, weighted + precision * value
            kept = min(1.0, _HEAVIEST / known)
            self._pairs[gain.pair] = known * kept, weighted * kept

    def state_dict(self) -> dict[str, Any]:
        """All measurements and units, as JSON data."""
        return {
            "taught": self.taught,
            "depths": dict(self._depths),
            "leads": [[*pair, lead] for pair, lead in self._leads.items()],
            "short": self.short,
            "early": self._early
            and [[run, *g.pair, g.gain, g.stderr, g.lead] for run, g in self._early],
            "pairs": [[*pair, *numbers] for pair, numbers in self._pairs.items()],
            "runs": [
                [run, unit.shadow, unit.blended, unit.grafts] for run, unit in self._runs.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; an error leaves all as it was."""
        pairs = {(str(a), str(b)): (float(n), float(sum_)) for a, b, n, sum_ in state["pairs"]}
        runs = {
            str(run): Unit(float(shadow), float(blended), {str(k): int(v) for k, v in own.items()})
            for run, shadow, blended, own in state["runs"]
        }
        depths = {str(k): float(v) for k, v in state.get("depths", {}).items()}  # 0.1.0: none
        leads = {(str(a), str(b)): float(lead) for a, b, lead in state.get("leads", ())}
        early = [
            (str(run), Gain((str(a), str(b)), *map(float, numbers)))
            for run, a, b, *numbers in state.get("early") or ()
        ]
        numbers = [n for pair in pairs.values() for n in pair]
        if not np.isfinite([*numbers, *depths.values(), *leads.values()]).all():
            raise ValueError("a number is not finite")
        self.taught, self._pairs, self._runs = bool(state["taught"]), pairs, runs
        self._depths, self._leads, self.short = depths, leads, bool(state.get("short"))
        self._early = None if state.get("early", ()) is None else early


def _moved(unit: float, gains: Sequence[Gain], expected: float, pace: float) -> float:
    """Unit after gains that were expected to be so many units large.

    Magnitudes, since at one moment some seeds do harm: the mean of gains may be near 0 where they
    differ by much. Gains below their standard errors are noise, which shows how small a unit is.
    """
    seen = max(fmean(abs(gain.gain) for gain in gains), fmean(gain.stderr for gain in gains))
    size = seen / max(expected, _MODEST)
    if not unit or not size:
        return unit or size
    ratio = max(1 / _STEP, min(size / unit, _STEP))
    return float(unit * ratio**pace)


def _covariance(
    one: Sequence[Pair], two: Sequence[Pair], depths: Mapping[str, float], leads: Leads
) -> Numbers:
    rows, columns = [[_parts(pair) for pair in pairs] for pairs in (one, two)]
    layers, kinds, blueprints = (
        np.array([a[at] for a in rows])[:, None] == np.array([b[at] for b in columns])
        for at in range(3)
    )
    near = _near([layer for layer, _ in one], [layer for layer, _ in two], depths)
    of_layer = np.where(layers, OF_LAYER, DEPTH_OF_LAYER * near)
    of_both = np.where(layers, OF_BOTH, DEPTH_OF_BOTH * near) * kinds
    shared = OF_BLUEPRINT * blueprints + OF_KIND * kinds
    here, there = [[LED if pair in leads else 1.0 for pair in pairs] for pairs in (one, two)]
    left = np.sqrt(np.outer(here, there))
    covariance: Numbers = left * (of_layer + shared + of_both).reshape(left.shape)
    return covariance


def _near(one: Sequence[str], two: Sequence[str], depths: Mapping[str, float]) -> Numbers:
    """Nearness of layers in depth, in [0, 1]; 0 where a depth is not known."""
    rows, columns = [np.array([depths.get(n, nan) for n in names]) for names in (one, two)]
    apart = np.abs(rows[:, None] - columns[None, :]) / REACH
    near: Numbers = np.nan_to_num(np.maximum(1 - apart, 0.0))
    return near


def _parts(pair: Pair) -> tuple[str, str, str]:
    """Layer, kind and blueprint."""
    layer, kind = pair
    return layer, kind, kind.rpartition("/")[2]
