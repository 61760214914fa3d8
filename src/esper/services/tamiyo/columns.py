"""What is known of thousands of layers, as arrays that an outcome brings up to date.

Shapes: L layers, K seeds, N choices, M choices or outcomes of which no two are of one layer. Arrays
are (K, L): what belongs to one seed of all layers lies together, so the best seed is found by K
passes over long rows and not by L over short ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import erfc
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.performance import SeedStatistics
from esper.services.tamiyo.seed_record import OPEN
from esper.services.tamiyo.standing import ROUNDING

Flags: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Whole: TypeAlias = NDArray[np.intp]

_SCRATCH = ("_work_KL", "_spare_KL")


@final
@dataclass(frozen=True, slots=True)
class SeedSums:
    """One seed of one layer, as strategies read it; fields as of `SeedStatistics`."""

    count: int
    mean: float
    m2: float
    recent: float
    outcomes: int
    total_activations: int
    pending: int


class Columns(ABC):
    """Choices and outcomes of every seed of every layer, counted.

    Args:
        layers: L.
        seeds: K.
        window_size: Outcomes of a seed that are remembered.
        decay_factor: Weight of an outcome relative to the one after it.

    Attributes:
        outcomes_KL: Outcomes ever.
        choices_KL: Choices ever.
        pending_KL: Choices whose outcome has not come; no more than 32 are remembered.
    """

    arrays: ClassVar[tuple[str, ...]] = ("outcomes_KL", "choices_KL", "pending_KL")
    """Names of all that must be kept; everything else can be worked out from it."""

    def __init__(self, layers: int, seeds: int, window_size: int, decay_factor: float) -> None:
        shape = (seeds, layers)
        self.window_size = window_size
        self.decay_factor = decay_factor
        self.outcomes_KL = np.zeros(shape, dtype=np.int32)
        self.choices_KL = np.zeros(shape, dtype=np.int32)
        self.pending_KL = np.zeros(shape, dtype=np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays but those to work in."""
        own = vars(self).items()
        return sum([v.nbytes for k, v in own if isinstance(v, np.ndarray) and k not in _SCRATCH])

    def untried(self) -> Flags | None:
        """Which seeds were neither chosen nor heard of; ``None`` if there are none."""
        if self.choices_KL.min() > 0:
            return None
        untried_KL: Flags = (self.choices_KL == 0) & (self.outcomes_KL == 0)
        return untried_KL if untried_KL.any() else None

    def everywhere(self, number: float) -> Floats:
        """The same number for each layer."""
        return np.full(self.outcomes_KL.shape[1], number)

    def choose(self, layers_N: Whole, seeds_N: Whole) -> None:
        """Count choices, of each layer one at most, and wait for their outcomes."""
        at_N = self._flat(layers_N, seeds_N)
        self.choices_KL.reshape(-1)[at_N] += 1
        pending = self.pending_KL.reshape(-1)
        pending[at_N] = np.minimum(pending[at_N] + 1, OPEN)

    def close(self, layers_M: Whole, seeds_M: Whole) -> None:
        """No longer wait for one outcome of each of these."""
        at_M = self._flat(layers_M, seeds_M)
        pending = self.pending_KL.reshape(-1)
        waiting_M = pending[at_M]
        pending[at_M] = waiting_M - (waiting_M > 0)

    def learn(self, layers_M: Whole, seeds_M: Whole, rewards_M: Floats) -> None:
        """Take in outcomes, of each layer one at most."""
        self.close(layers_M, seeds_M)
        self._take(layers_M, seeds_M, rewards_M)
        self.outcomes_KL.reshape(-1)[self._flat(layers_M, seeds_M)] += 1
        first, last = int(layers_M[0]), int(layers_M[-1])
        run = last - first + 1 == len(layers_M) and bool((layers_M[1:] > layers_M[:-1]).all())
        self.refresh(slice(first, last + 1) if run else layers_M)  # a slice is faster

    @abstractmethod
    def refresh(self, layers_M: Whole | slice) -> None:
        """Work out anew what is not kept of these layers."""

    @abstractmethod
    def metrics(self, layer: int, without: int = -1) -> Mapping[int, SeedStatistics]:
        """What `decide` reads of one layer; the latest choice of seed ``without`` left out."""

    def load(self, arrays: object) -> None:
        """Take over arrays, each as a list of numbers in the order of ``ravel``.

        Raises:
            ConfigError: if one is missing or damaged; nothing is changed then.
        """
        given = arrays if isinstance(arrays, Mapping) else {}
        found = {name: self._read(name, given.get(name)) for name in self.arrays}
        for name, array in found.items():
            getattr(self, name)[...] = array
        self.refresh(slice(None))

    def _read(self, name: str, given: object) -> NDArray[Any]:
        own: NDArray[Any] = getattr(self, name)
        try:
            found = np.array(given, dtype=own.dtype).reshape(own.shape)
            sound = isinstance(given, list) and bool(np.isfinite(found).all())
        except (TypeError, ValueError, OverflowError):
            sound = False
        if not sound:
            raise ConfigError(
                f"the state's array {name!r} is not {own.size} numbers of type {own.dtype}; it is "
                "damaged or of another strategy"
            )
        return found

    @abstractmethod
    def _take(self, layers_M: Whole, seeds_M: Whole, rewards_M: Floats) -> None:
        """Bring sums up to date; outcomes are counted after."""

    def _flat(self, layers_N: Whole, seeds_N: Whole) -> Whole:
        return seeds_N * self.outcomes_KL.shape[1] + layers_N


@final
class WindowColumns(Columns):
    """Means and squares of every seed, and what they are measured by.

    Up to ``W = window_size`` outcomes of a seed these are the sums that a `SeedRecord` has. From
    there on a record forgets the outcome that leaves its window; remembering windows takes 1,280
    bytes for a layer of eight. Here an outcome counts for ``2 / (W + 1)`` and all before it for the
    rest: outcomes are ``(W - 1) / 2`` old on average and the mean is as uncertain as that of ``W``,
    both as in a full window.

    Attributes:
        mean_KL: Mean reward; that of a seed without an outcome is the centre.
        m2_KL: Sum of squared deviations from it.
        recent_KL: Exponentially weighted mean of all rewards.
        centre_L: Unweighted mean of the seeds' mean rewards.
        scale_L: Standard deviation of the rewards, pooled; inf if there is no spread at all.
    """

    arrays: ClassVar[tuple[str, ...]] = (*Columns.arrays, "mean_KL", "m2_KL", "recent_KL")

    def __init__(self, layers: int, seeds: int, window_size: int, decay_factor: float) -> None:
        super().__init__(layers, seeds, window_size, decay_factor)
        shape = (seeds, layers)
        self.mean_KL, self.m2_KL, self.recent_KL = (np.zeros(shape) for _ in range(3))
        self.centre_L, self.scale_L = np.zeros(layers), np.full(layers, np.inf)
        self._total_L = np.zeros(layers)
        self._work_KL, self._spare_KL = np.empty(shape), np.empty(shape)

    def standardised(self, out_KL: Floats) -> Floats:
        """Mean rewards in standard deviations about the layer's centre; 0 without an outcome."""
        np.subtract(self.mean_KL, self.centre_L, out=out_KL)
        out_KL /= self.scale_L
        return out_KL

    def counts(self) -> Floats:
        """Outcomes inside the window; a buffer that the next call overwrites."""
        return np.minimum(self.outcomes_KL, float(self.window_size), out=self._work_KL)

    def spare(self) -> Floats:
        """Another buffer, for whatever is needed."""
        return self._spare_KL

    def weights(self) -> Floats:
        """Outcomes inside the window and choices without one; overwrites `counts`."""
        counts_KL = self.counts()
        counts_KL += self.pending_KL
        return counts_KL

    def intervals(self, constant: float) -> Floats:
        """``sqrt(constant * ln(outcomes ever in the layer) / trials)``; overwrites `counts`.

        Trials are outcomes inside the window; choices, of a seed that nothing was heard of. Both
        count choices whose outcome has not come.
        """
        trials_KL, total_L = self.counts(), self._total_L
        if self.pending_KL.any():
            trials_KL += self.pending_KL
            total_L = total_L + self.pending_KL.sum(axis=0)
        if not self.outcomes_KL.all():
            unheard_KL = self.outcomes_KL == 0
            np.copyto(trials_KL, np.maximum(self.choices_KL, 1), where=unheard_KL)
        width_L = constant * np.log(np.maximum(total_L, 1.0))
        np.divide(width_L, trials_KL, out=trials_KL)
        return np.sqrt(trials_KL, out=trials_KL)

    def below(self, z_KL: Floats) -> Floats:
        """``Phi(z)``: the probability that a standard normal number is below."""
        # NumPy has no error function, and SciPy would be a dependency for this one alone.
        falls = map(erfc, (z_KL * -(0.5**0.5)).ravel().tolist())
        below_KL: Floats = 0.5 * np.fromiter(falls, float, z_KL.size).reshape(z_KL.shape)
        return below_KL

    def squares(self) -> Floats:
        """Squared deviations from the mean, standardised, of as many outcomes as `weights` has.

        A choice without an outcome adds as much noise as its seed has shown so far.
        """
        counts_KL = self.counts()
        squares_KL: Floats = self.m2_KL / self.scale_L / self.scale_L
        np.maximum(counts_KL, 1.0, out=counts_KL)
        squares_KL *= 1 + self.pending_KL / counts_KL
        return squares_KL

    def shrunk_recent(self, out_KL: Floats) -> Floats:
        """`SeedRecord.recent`, standardised, times ``n / (n + 1)`` after ``n`` outcomes."""
        counts_KL = self.counts()
        np.subtract(self.recent_KL, self.centre_L, out=out_KL)
        out_KL /= self.scale_L
        out_KL *= counts_KL
        counts_KL += 1
        out_KL /= counts_KL
        return out_KL

    @override
    def refresh(self, layers_M: Whole | slice) -> None:
        # As `standardise` does, seed after seed, so that sums are equal to the last bit.
        outcomes_KM, mean_KM = self.outcomes_KL[:, layers_M], self.mean_KL[:, layers_M]
        heard_KM = outcomes_KM > 0
        counts_KM = np.minimum(outcomes_KM, float(self.window_size))
        first_M = heard_KM.argmax(axis=0)
        origin_M = np.take_along_axis(mean_KM, first_M[None], axis=0)[0] * heard_KM.any(axis=0)
        shift_KM = np.where(heard_KM, mean_KM - origin_M, 0.0)
        within_M = np.add.reduce(self.m2_KL[:, layers_M])
        weighted_KM = counts_KM * shift_KM
        weighted_M = np.add.reduce(weighted_KM)
        squares_M = np.add.reduce(weighted_KM * shift_KM)
        counts_M, seeds_M = np.add.reduce(counts_KM), np.add.reduce(heard_KM, dtype=float)
        freedom_M = np.maximum(counts_M - 1, 1.0)
        total_M = within_M + squares_M - weighted_M * weighted_M / np.maximum(counts_M, 1.0)
        total_M /= freedom_M
        scale_M = np.maximum(within_M + total_M, 0.0) / np.maximum(counts_M - seeds_M + 1, 1.0)
        scale_M = np.sqrt(scale_M)
        scale_M[(counts_M < 2) | (scale_M <= ROUNDING * np.abs(origin_M))] = np.inf
        centre_M = origin_M + np.add.reduce(shift_KM) / np.maximum(seeds_M, 1.0)
        self.scale_L[layers_M] = scale_M
        self.centre_L[layers_M] = np.where(counts_M < 2, origin_M, centre_M)
        self._total_L[layers_M] = np.add.reduce(outcomes_KM, dtype=float)
        self.mean_KL[:, layers_M] = np.where(heard_KM, mean_KM, self.centre_L[layers_M])

    @override
    def metrics(self, layer: int, without: int = -1) -> Mapping[int, SeedStatistics]:
        found: dict[int, SeedStatistics] = {}
        for seed in range(len(self.outcomes_KL)):
            left_out = int(seed == without)
            outcomes = int(self.outcomes_KL[seed, layer])
            choices = int(self.choices_KL[seed, layer]) - left_out
            if outcomes or choices:
                found[seed] = SeedSums(
                    count=min(outcomes, self.window_size),
                    mean=float(self.mean_KL[seed, layer]) if outcomes else 0.0,
                    m2=float(self.m2_KL[seed, layer]),
                    recent=float(self.recent_KL[seed, layer]),
                    outcomes=outcomes,
                    total_activations=choices,
                    pending=int(self.pending_KL[seed, layer]) - left_out,
                )
        return found

    @override
    def _take(self, layers_M: Whole, seeds_M: Whole, rewards_M: Floats) -> None:
        at_M, window = self._flat(layers_M, seeds_M), self.window_size
        mean, m2, recent = (
            array.reshape(-1) for array in (self.mean_KL, self.m2_KL, self.recent_KL)
        )
        seen_M = self.outcomes_KL.reshape(-1)[at_M]
        growing_M = seen_M < window
        before_M = np.where(seen_M > 0, mean[at_M], 0.0)
        off_M = rewards_M - before_M
        share = 2.0 / (window + 1)
        after_M = before_M + np.where(growing_M, off_M / (seen_M + 1), off_M * share)
        squares_M = m2[at_M]
        m2[at_M] = np.where(
            growing_M,
            squares_M + off_M * (rewards_M - after_M),
            (1 - share) * (squares_M + share * window * off_M * off_M),
        )
        mean[at_M] = after_M
        recent_M = recent[at_M]
        recent[at_M] = recent_M + (rewards_M - recent_M) / self._weight(seen_M + 1)

    def _weight(self, outcomes_M: NDArray[np.int32]) -> Floats:
        """Weight of so many outcomes, the newest weighing 1."""
        decay = self.decay_factor
        if decay == 1:
            return outcomes_M.astype(float)
        weight_M: Floats = (1 - np.power(decay, outcomes_M.astype(float))) / (1 - decay)
        return weight_M
