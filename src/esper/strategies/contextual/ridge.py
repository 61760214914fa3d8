"""Ridge regressions with rank-one updates and a fresh solution every 1,024 outcomes.

Shapes: K regressions or seeds, D features, E = D + 2 rows of a regression, R = K E of all, T = 2 of
them about rewards, B outcomes.
"""

from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from esper.contracts.errors import ConfigError
from esper.records.layer_sums import ROUNDING

Array: TypeAlias = NDArray[np.float64]

_BLOCK = 32
"""Outcomes of a regression that are buffered and added to its sums together."""

_FRESH = 1024
"""Outcomes of a regression after which it is solved again, so that rounding does not pile up."""


@final
class Ridges:
    """K ridge regressions of rewards on D features each, with a common centre and scale.

    A regression has ``A = ridge * I + sum x x'`` and ``b = sum r x``; its coefficients are
    ``A^-1 b``. Rewards enter as they are, and a regression on the constant 1 goes along: the
    coefficients for rewards less any centre ``c`` are ``A^-1 b - c A^-1 (sum x)``. So the centre
    and the spread of *all* rewards so far are in force at every choice, and neither a shift nor a
    factor on rewards matters. An outcome changes ``[A^-1 | A^-1 b | A^-1 sum x]`` by a matrix of
    rank one (Sherman & Morrison 1950); every 1,024 outcomes it is solved again from sums.

    Args:
        width: D.
        ridge: Added to the diagonal, > 0: the precision of the coefficients beforehand, in
            outcomes.

    Attributes:
        counts: Outcomes of each regression.

    Example:
        One feature, always 1, ridge 1; rewards 1 and 3: ``A = 3``, ``b = 4``. Less their mean, 2,
        the prediction is ``(4 - 2 * 2) / 3 = 0``, its variance ``1 / 3`` of a reward's.

        >>> model = Ridges(1, 1.0)
        >>> arm = model.add()
        >>> model.learn(arm, np.ones(1), 1.0)
        >>> model.learn(arm, np.ones(1), 3.0)
        >>> means, variances = model.at(np.ones(1))
        >>> means[arm], round(variances[arm], 4)
        (0.0, 0.3333)
    """

    def __init__(self, width: int, ridge: float) -> None:
        self.width = width
        self.ridge = ridge
        self.counts: list[int] = []
        self.outcomes = 0
        self._origin = 0.0  # of the rewards in the sums; the first reward
        self._mean = 0.0
        self._m2 = 0.0
        self._surprises = (0.0, 0.0, 0.0)  # sums of e_r**2, e_r e_1, e_1**2, each over 1 + x'Px
        self._solved_KED = np.empty((0, width + 2, width))
        self._sums_KEE = np.empty((0, width + 2, width + 2))
        self._waiting: list[list[tuple[Array, float]]] = []
        self._rank_one = _RankOne(width)
        self._lay_out()

    def add(self) -> int:
        """Add a regression and return its number."""
        width = self.width
        fresh_ED = np.concatenate([np.eye(width) / self.ridge, np.zeros((2, width))])
        self._solved_KED = np.concatenate([self._solved_KED, fresh_ED[None]])
        self._sums_KEE = np.concatenate([self._sums_KEE, np.zeros((1, width + 2, width + 2))])
        self._lay_out()
        self._waiting.append([])
        self.counts.append(0)
        return len(self.counts) - 1

    def reset(self, arm: int) -> None:
        """Forget this regression's outcomes; centre and scale remain."""
        self._waiting[arm] = []
        self.counts[arm] = 0
        self._sums_KEE[arm] = 0.0
        self._solve(arm)

    @property
    def centre(self) -> float:
        """Mean of all rewards."""
        return self._origin + self._mean

    @property
    def scale(self) -> float:
        """Standard deviation of rewards about their predictions; inf if they do not differ.

        ``sqrt((sum e**2 / (1 + x' A^-1 x) + total variance) / (outcomes + 1))``, ``e`` being a
        reward's distance from its prediction: with few it leans on the spread of all rewards.
        """
        square, mixed, ones = self._surprises
        mean, outcomes = self._mean, self.outcomes
        total = square - 2 * mean * mixed + mean * mean * ones
        if total <= 0 or outcomes < 2:
            return inf
        scale = sqrt((total + self._m2 / (outcomes - 1)) / (outcomes + 1))
        return scale if scale > ROUNDING * abs(self._origin) else inf

    def learn(self, arm: int, x_D: Array, reward: float) -> None:
        """Add one outcome of regression ``arm``; ``x_D`` is kept and must not change."""
        if not self.outcomes:
            self._origin = reward
        off = reward - self._origin
        outcomes = self.outcomes = self.outcomes + 1
        before = off - self._mean
        self._mean += before / outcomes
        self._m2 += before * (off - self._mean)

        missed, one, spread = self._rank_one.change(self._own_ED[arm], x_D, off)
        square, mixed, ones = self._surprises
        self._surprises = (
            square + missed * missed / spread,
            mixed + missed * one / spread,
            ones + one * one / spread,
        )
        waiting = self._waiting[arm]
        waiting.append((x_D, off))
        count = self.counts[arm] = self.counts[arm] + 1
        if not count % _FRESH:
            self._flush(arm)
            self._solve(arm)
        elif len(waiting) == _BLOCK:
            self._flush(arm)

    def at(self, x_D: Array) -> tuple[list[float], list[float]]:
        """Predictions of every regression at one point.

        Returns:
            Means, in units of ``scale`` about ``centre``, and variances, in units of its square.
        """
        self._rows_RD.dot(x_D, self._seen_R)
        variances: list[float] = self._gains_KD.dot(x_D, self._variances_K).tolist()
        centre, scale = self._mean, self.scale
        means = [(value - centre * one) / scale for value, one in self._values_KT.tolist()]
        return means, variances

    def each(self, arms: Sequence[int], x_KD: Array) -> tuple[list[float], list[float]]:
        """Means and variances of regressions, each at a separate point, in the units of `at`."""
        seen_KE = np.matmul(self._solved_KED[arms], x_KD[:, :, None])[:, :, 0]
        values_KT = seen_KE[:, self.width :]
        means_K = (values_KT[:, 0] - self._mean * values_KT[:, 1]) / self.scale
        variances_K = (seen_KE[:, : self.width] * x_KD).sum(axis=1)
        return means_K.tolist(), variances_K.tolist()

    def over(self, arm: int, x_KD: Array) -> tuple[Array, Array]:
        """Means and covariances of one regression at several points, in the units of `at`."""
        width = self.width
        seen_KE = x_KD @ self._solved_KED[arm].T
        means_K = (seen_KE[:, width] - self._mean * seen_KE[:, -1]) / self.scale
        return means_K, seen_KE[:, :width] @ x_KD.T

    def state_dict(self) -> dict[str, Any]:
        """Complete state, as JSON data."""
        return {
            "width": self.width,
            "counts": list(self.counts),
            "outcomes": self.outcomes,
            "rewards": [self._origin, self._mean, self._m2],
            "surprises": list(self._surprises),
            "solved": self._solved_KED.ravel().tolist(),
            "sums": self._sums_KEE.ravel().tolist(),
            "waiting": [
                [arm, x_D.tolist(), off]
                for arm, own in enumerate(self._waiting)
                for x_D, off in own
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned, bit for bit.

        Raises:
            ConfigError: if the state is of another number of features, or damaged; then nothing
                is changed.
        """
        width, end = self.width, self.width + 2
        if state.get("width") != width:
            raise ConfigError(
                f"the state is of a regression on {state.get('width')} features, this one has "
                f"{width}; it belongs to another strategy, or to another version of Esper"
            )
        try:
            counts = [int(count) for count in state["counts"]]
            solved_KED = np.array(state["solved"], dtype=float).reshape(len(counts), end, width)
            sums_KEE = np.array(state["sums"], dtype=float).reshape(len(counts), end, end)
            origin, mean, m2 = state["rewards"]
            square, mixed, ones = state["surprises"]
            waiting: list[list[tuple[Array, float]]] = [[] for _ in counts]
            for arm, x_D, off in state["waiting"]:
                waiting[arm].append((np.array(x_D, dtype=float).reshape(width), off))
            outcomes = int(state["outcomes"])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the state of a regression is damaged ({error!r}); resume from another checkpoint"
            ) from error
        self.counts, self.outcomes, self._waiting = counts, outcomes, waiting
        self._origin, self._mean, self._m2 = origin, mean, m2
        self._surprises = (square, mixed, ones)
        self._solved_KED, self._sums_KEE = solved_KED, sums_KEE
        self._lay_out()

    def _lay_out(self) -> None:
        # Views and buffers, made once: at ten features, making them takes as long as the products.
        width = self.width
        self._own_ED = list(self._solved_KED)
        self._rows_RD = self._solved_KED.reshape(-1, width)
        self._seen_R = np.empty(len(self._rows_RD))
        seen_KE = self._seen_R.reshape(-1, width + 2)
        self._gains_KD, self._values_KT = seen_KE[:, :width], seen_KE[:, width:]
        self._variances_K = np.empty(len(seen_KE))

    def _flush(self, arm: int) -> None:
        waiting, self._waiting[arm] = self._waiting[arm], []
        if not waiting:
            return
        xs_BD, offs_B = zip(*waiting, strict=True)
        rows_BE = np.ones((len(xs_BD), self.width + 2))
        rows_BE[:, : self.width] = np.concatenate(xs_BD).reshape(-1, self.width)
        rows_BE[:, self.width] = offs_B
        self._sums_KEE[arm] += rows_BE.T @ rows_BE

    def _solve(self, arm: int) -> None:
        width = self.width
        known_DD = self._sums_KEE[arm, :width, :width] + self.ridge * np.eye(width)
        wanted_DE = np.concatenate([np.eye(width), self._sums_KEE[arm, :width, width:]], axis=1)
        solved_ED = np.linalg.solve(known_DD, wanted_DE).T
        inverse_DD = solved_ED[:width]
        solved_ED[:width] = (inverse_DD + inverse_DD.T) / 2
        self._solved_KED[arm] = solved_ED


@final
class _RankOne:
    """Rank-one update of a regression, with preallocated buffers."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._seen_E, self._scaled_E = np.empty(width + 2), np.empty(width + 2)
        self._gain_D = self._seen_E[:width]
        self._column_E, self._row_D = self._scaled_E[:, None], self._gain_D[None]
        self._change_ED = np.empty((width + 2, width))

    def change(self, solved_ED: Array, x_D: Array, off: float) -> tuple[float, float, float]:
        """Add one outcome.

        Returns:
            Distances of the reward and of the constant 1 from their predictions, and the variance
            of such a distance, in variances of the noise.
        """
        width, seen_E = self._width, self._seen_E
        solved_ED.dot(x_D, seen_E)
        spread = 1.0 + float(x_D.dot(self._gain_D))
        missed, one = off - seen_E.item(width), 1.0 - seen_E.item(width + 1)
        seen_E[width], seen_E[width + 1] = -missed, -one
        np.divide(seen_E, spread, self._scaled_E)
        # A product of a column and a row by BLAS takes half the time of one by broadcasting.
        self._column_E.dot(self._row_D, self._change_ED)
        np.subtract(solved_ED, self._change_ED, solved_ED)
        return missed, one, spread
