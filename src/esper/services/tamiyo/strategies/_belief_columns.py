"""What is believed of thousands of layers at once, as `_beliefs` and `_evidence` have it of one.

Shapes: L layers, K seeds, M outcomes of which no two are of one layer, T of them that are alarms.
The arithmetic is that of `Beliefs` where no kinds are known, number by number, and so is the
precision that each number is kept in.
"""

from math import log
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from esper.contracts.performance import SeedStatistics
from esper.services.tamiyo.columns import Columns, Flags, Floats, SeedSums, Whole
from esper.services.tamiyo.standing import ROUNDING
from esper.services.tamiyo.strategies import _beliefs as single
from esper.services.tamiyo.strategies import _evidence as evidence
from esper.services.tamiyo.strategies import _imed as imed
from esper.services.tamiyo.strategies._pooling import MEMORY

Run: TypeAlias = tuple[Floats, Floats, Whole]
"""As `_beliefs.Run`, of many seeds."""

_SEED = (
    "mean_KL",
    "known_KL",
    "rise_KL",
    "fall_KL",
    "rose_KL",
    "fell_KL",
    "rising_KL",
    "falling_KL",
)
_LAYER = ("m2_L", "total_L", "centre_L", "seen_L", "since_L", "surprises_L", "restarts_L")


class LearnedMetrics(dict[int, SeedStatistics]):
    """Counts of a layer's seeds, and what was learnt of them."""

    def __init__(self, knowledge: single.Beliefs) -> None:
        super().__init__()
        self.knowledge = knowledge


@final
class BeliefColumns(Columns):
    """Means and noise of every seed since the rewards of its layer last changed.

    Fields of a row and of the layer as `_beliefs` has them, less the kind; 343 bytes for a layer of
    eight.
    """

    arrays: ClassVar[tuple[str, ...]] = (*Columns.arrays, *_SEED, *_LAYER)

    def __init__(self, layers: int, seeds: int, window_size: int, decay_factor: float) -> None:
        super().__init__(layers, seeds, window_size, decay_factor)
        shape = (seeds, layers)
        self.mean_KL = np.zeros(shape)
        self.known_KL, self.rise_KL, self.fall_KL, self.rose_KL, self.fell_KL = (
            np.zeros(shape, dtype=np.float32) for _ in range(5)
        )
        self.rising_KL, self.falling_KL = (np.zeros(shape, dtype=np.uint8) for _ in range(2))
        self.m2_L, self.total_L, self.centre_L = (np.zeros(layers) for _ in range(3))
        self.seen_L, self.since_L, self.surprises_L = (
            np.zeros(layers, dtype=np.uint16) for _ in range(3)
        )
        self.restarts_L = np.zeros(layers, dtype=np.uint8)

    def noise(self, layers_M: Whole | slice) -> Floats:
        """Standard deviation of a reward about its seed's mean; inf if rewards do not differ."""
        seen_M = self.seen_L[layers_M].astype(float)
        total_M = np.where(seen_M > 1, self.total_L[layers_M] / np.maximum(seen_M - 1, 1.0), 0.0)
        variance_M = (self.m2_L[layers_M] + total_M) / (self.surprises_L[layers_M] + 1.0)
        noise_M = np.sqrt(np.maximum(variance_M, 0.0))
        noise_M[noise_M <= ROUNDING * np.abs(self.centre_L[layers_M])] = np.inf
        return noise_M

    def standings(self) -> tuple[Floats, Floats]:
        """Posterior mean of every seed, and trials: what it is worth and choices without outcome.

        Of a seed that nothing was heard of, the average, and choices that came to nothing too.
        """
        known_KL = self.known_KL.astype(float)
        own = evidence._OWN
        if self.outcomes_KL.all():
            weight_KL, mean_KL = known_KL, self.mean_KL
            average_L = self._average(mean_KL, None)
        else:
            heard_KL = known_KL > 0
            lost_KL = self.choices_KL - self.outcomes_KL.astype(float)
            waiting_KL = np.maximum(self.pending_KL, lost_KL)
            average_L = self._average(self.mean_KL, heard_KL)
            mean_KL = np.where(heard_KL, self.mean_KL, average_L)
            unheard_KL = np.where(waiting_KL > 0, waiting_KL - self.pending_KL, -own)
            weight_KL = np.where(heard_KL, known_KL, unheard_KL)
        weight_KL = weight_KL + own
        means_KL = mean_KL + (average_L - mean_KL) * own / np.maximum(weight_KL, own)
        return means_KL, weight_KL + self.pending_KL

    def merits(
        self, exploration: float, horizon: float, viable_KL: Flags | None, out_KL: Floats
    ) -> None:
        """The negative index of every seed, as `_imed.merits` has it of one layer."""
        mean_KL, trials_KL = self.standings()
        ranked_KL = mean_KL
        if viable_KL is not None or not trials_KL.all():
            among_KL = trials_KL > 0 if viable_KL is None else viable_KL & (trials_KL > 0)
            ranked_KL = np.where(among_KL, mean_KL, -np.inf)
            trials_KL = np.maximum(trials_KL, 1.0)  # those without are tried first
        best_L = _highest(ranked_KL)
        mean_L, spread_L = _of(mean_KL, best_L), 1 / _of(trials_KL, best_L)
        np.subtract(mean_L, mean_KL, out=out_KL)
        out_KL /= 2**0.5 * self.noise(slice(None))
        out_KL *= out_KL
        out_KL /= 1 / trials_KL + spread_L
        spent_KL = np.log(trials_KL)
        knee = log(horizon)
        if spent_KL.max() > knee:
            slow_KL = knee + imed._SLOW * (spent_KL - knee)
            spent_KL = np.where(spent_KL <= knee, spent_KL, slow_KL)
        spent_KL *= exploration
        out_KL += spent_KL
        np.negative(out_KL, out=out_KL)

    @override
    def refresh(self, layers_M: Whole | slice) -> None:
        return  # everything is kept

    @override
    def metrics(self, layer: int, without: int = -1) -> LearnedMetrics:
        knowledge = single.Beliefs()
        heard = np.flatnonzero(self.known_KL[:, layer])
        knowledge.load_state_dict(
            {
                "layer": [getattr(self, name)[layer].item() for name in _LAYER],
                "seeds": heard.tolist(),
                "rows": [
                    [*(getattr(self, name)[seed, layer].item() for name in _SEED), 0]
                    for seed in heard
                ],
                "pool": knowledge.pool.state_dict(),
            }
        )
        found = LearnedMetrics(knowledge)
        for seed in range(len(self.outcomes_KL)):
            left_out = int(seed == without)
            outcomes = int(self.outcomes_KL[seed, layer])
            choices = int(self.choices_KL[seed, layer]) - left_out
            if outcomes or choices:
                pending = int(self.pending_KL[seed, layer]) - left_out
                found[seed] = SeedSums(0, 0.0, 0.0, 0.0, outcomes, choices, pending)
        return found

    @override
    def _take(self, layers_M: Whole, seeds_M: Whole, rewards_M: Floats) -> None:
        at_M = self._flat(layers_M, seeds_M)
        row: dict[str, NDArray[Any]] = {
            name: getattr(self, name).reshape(-1)[at_M] for name in _SEED
        }
        known_M = row["known_KL"].astype(float)
        heard_M = known_M > 0
        off_M = rewards_M - row["mean_KL"]
        noise_M = self.noise(layers_M)
        ready_M = heard_M & (self.surprises_L[layers_M] >= single._READY) & np.isfinite(noise_M)
        self._measure(layers_M, rewards_M, np.where(heard_M, off_M, 0.0), known_M, heard_M)

        sure_M = np.minimum(known_M, MEMORY)
        push_M = np.clip(
            off_M / noise_M * np.sqrt(sure_M / (sure_M + 1)), -single._CLIP, single._CLIP
        )
        up = (row["rise_KL"].astype(float), row["rose_KL"].astype(float), row["rising_KL"])
        down = (row["fall_KL"].astype(float), row["fell_KL"].astype(float), row["falling_KL"])
        up = _followed(up, push_M - single._DRIFT, off_M, ready_M)
        down = _followed(down, -push_M - single._DRIFT, off_M, ready_M)
        known_M = known_M + 1
        step_M = off_M / np.minimum(known_M, MEMORY)
        after = {
            "mean_KL": np.where(heard_M, row["mean_KL"] + step_M, rewards_M),
            "known_KL": known_M,
            "rise_KL": up[0],
            "fall_KL": down[0],
            # Runs are relative to the mean, which moves.
            "rose_KL": np.where(heard_M, _single(up[1] - step_M), 0.0),
            "fell_KL": np.where(heard_M, _single(down[1] - step_M), 0.0),
            "rising_KL": up[2],
            "falling_KL": down[2],
        }
        for name, values_M in after.items():
            getattr(self, name).reshape(-1)[at_M] = values_M
        rose_M = up[0] > single._LIMIT
        alarms = np.flatnonzero(rose_M | (down[0] > single._LIMIT))
        if len(alarms):
            run_T = np.where(rose_M, up[1], down[1])[alarms]
            length_T = np.where(rose_M, up[2], down[2])[alarms]
            before_T = row["mean_KL"][alarms]
            self._restart(
                layers_M[alarms],
                seeds_M[alarms],
                before_T,
                before_T + run_T,
                np.minimum(length_T, single._KEPT),
                rose_M[alarms],
            )

    def _measure(
        self, layers_M: Whole, rewards_M: Floats, off_M: Floats, known_M: Floats, heard_M: Flags
    ) -> None:
        """Take rewards, ``off_M`` the means of their seeds, into what the noise is made from."""
        memory = MEMORY
        seen_M, total_M = self.seen_L[layers_M], self.total_L[layers_M]
        growing_M = seen_M < memory
        seen_M = seen_M + growing_M
        total_M = np.where(growing_M, total_M, total_M - total_M / memory)
        from_M = rewards_M - self.centre_L[layers_M]
        centre_M = self.centre_L[layers_M] + from_M / seen_M
        self.total_L[layers_M] = total_M + from_M * (rewards_M - centre_M)
        self.centre_L[layers_M], self.seen_L[layers_M] = centre_M, seen_M
        surprises_M, m2_M = self.surprises_L[layers_M], self.m2_L[layers_M]
        full_M = surprises_M >= memory
        m2_M = np.where(full_M & heard_M, m2_M - m2_M / memory, m2_M)
        self.m2_L[layers_M] = m2_M + off_M * off_M * known_M / (known_M + 1)
        self.surprises_L[layers_M] = surprises_M + (heard_M & ~full_M)
        self.since_L[layers_M] = np.minimum(self.since_L[layers_M] + 1.0, single._WORD)

    def _restart(
        self,
        layers_T: Whole,
        seeds_T: Whole,
        before_T: Floats,
        mean_T: Floats,
        known_T: Floats,
        rose_T: Flags,
    ) -> None:
        self.since_L[layers_T] = 0
        self.restarts_L[layers_T] = np.minimum(self.restarts_L[layers_T] + 1.0, single._BYTE)
        mean_KT, alarms_T = self.mean_KL[:, layers_T], np.arange(len(layers_T))
        heard_KT = self.known_KL[:, layers_T] > 0
        mean_KT[seeds_T, alarms_T] = before_T
        ranked_KT = np.where(heard_KT, mean_KT, -np.inf)
        best_T, top_T = ranked_KT.argmax(axis=0), ranked_KT.max(axis=0)
        doubt_T = np.where(best_T == seeds_T, ~rose_T, mean_T > top_T)
        self._begin(seeds_T, layers_T, mean_T, known_T)
        mean_KT[seeds_T, alarms_T] = mean_T
        apart_T = np.add.reduce(np.where(heard_KT, mean_KT - mean_T, 0.0))
        average_T = mean_T + apart_T / np.add.reduce(heard_KT, dtype=float)
        heard_KT[seeds_T, alarms_T] = False
        seeds, alarms = np.nonzero(heard_KT & doubt_T)
        layers = layers_T[alarms]
        kept = np.minimum(self.known_KL[seeds, layers], single._KEPT)
        self._begin(seeds, layers, average_T[alarms], kept)

    def _begin(self, seeds: Whole, layers: Whole, mean: Floats, known: NDArray[Any]) -> None:
        for name in _SEED:
            getattr(self, name)[seeds, layers] = 0
        self.mean_KL[seeds, layers], self.known_KL[seeds, layers] = mean, known

    def _average(self, mean_KL: Floats, heard_KL: Flags | None) -> Floats:
        # Deviations from one of the means: equal rewards then differ by exactly nothing.
        if heard_KL is None:
            origin_L, seeds = mean_KL[0], np.array(len(mean_KL))
            apart_KL = mean_KL - origin_L
        else:
            origin_L, seeds = _of(mean_KL, heard_KL.argmax(axis=0)), np.add.reduce(heard_KL)
            apart_KL = np.where(heard_KL, mean_KL - origin_L, 0.0)
        average_L: Floats = origin_L + np.add.reduce(apart_KL) / np.maximum(seeds, 1)
        return average_L


def _highest(values_KL: Floats) -> Whole:
    """The first of the seeds that have the highest value of their layer."""
    top_L = np.maximum.reduce(values_KL)
    found_L = np.zeros(top_L.shape, dtype=np.intp)
    for seed in range(len(values_KL) - 1, -1, -1):
        np.copyto(found_L, seed, where=values_KL[seed] == top_L)
    return found_L


def _of(values_KL: Floats, seeds_L: Whole) -> Floats:
    layers = values_KL.shape[1]
    values_L: Floats = values_KL.reshape(-1)[seeds_L * layers + np.arange(layers)]
    return values_L


def _followed(run: Run, push_M: Floats, off_M: Floats, ready_M: Flags) -> Run:
    """The runs after outcomes ``off_M`` the means that speak for the change by ``push_M``."""
    before_M, mean_M, length_M = run
    evidence_M = before_M + push_M
    longer_M = np.minimum(length_M + 1.0, single._BYTE)
    moved_M = _single(mean_M + (off_M - mean_M) / longer_M)
    ended_M = evidence_M <= 0
    evidence_M[ended_M], moved_M[ended_M], longer_M[ended_M] = 0.0, 0.0, 0.0
    return (
        np.where(ready_M, evidence_M, before_M),
        np.where(ready_M, moved_M, mean_M),
        np.where(ready_M, longer_M, length_M).astype(np.intp),
    )


def _single(numbers: Floats) -> Floats:
    return np.clip(numbers, -single._SINGLE, single._SINGLE)
