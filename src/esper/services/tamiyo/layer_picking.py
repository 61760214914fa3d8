"""The best seed of each of many layers; ties are drawn.

Shapes: L layers, K seeds, T layers where something is drawn.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from esper.services.tamiyo.columns import Floats, Whole
from esper.services.tamiyo.strategies._base import TIE


@final
class BestOfEach:
    """Takes the highest of each layer's scores.

    Args:
        layers: L.
        seeds: K.

    Attributes:
        scores_KL: Scores to choose by; ``-inf`` is not viable.

    Example:
        >>> picking = BestOfEach(layers=3, seeds=2)
        >>> picking.scores_KL[:] = [[0.5, 0.1, -np.inf], [0.4, 0.2, -np.inf]]
        >>> picking.best(np.random.default_rng(0)).tolist()
        [0, 1, -1]
    """

    def __init__(self, layers: int, seeds: int) -> None:
        self.scores_KL: Floats = np.zeros((seeds, layers))
        self._tied_KL = np.zeros((seeds, layers), dtype=bool)
        self._best_L = np.zeros(layers)
        self._exploring_L: Floats | None = None

    def best(self, rng: np.random.Generator) -> Whole:
        """The seed of the highest score of each layer, one of them where several have it."""
        self._exploring_L = None
        best_L = np.maximum.reduce(self.scores_KL, out=self._best_L)
        tied_KL = np.greater_equal(self.scores_KL, best_L - TIE, out=self._tied_KL)
        chosen_L = np.zeros(best_L.shape, dtype=np.intp)
        for seed in range(len(tied_KL) - 1, 0, -1):
            np.copyto(chosen_L, seed, where=tied_KL[seed])
        np.copyto(chosen_L, 0, where=tied_KL[0])
        shared_L = np.add.reduce(tied_KL, dtype=np.int32) > 1
        if shared_L.any():
            drawn = np.flatnonzero(shared_L)
            chosen_L[drawn] = _drawn(tied_KL[:, drawn], rng)
        if best_L.min() == -np.inf:
            chosen_L[best_L == -np.inf] = -1
        return chosen_L

    def explore(self, chance_L: Floats, chosen_L: Whole, rng: np.random.Generator) -> None:
        """Choose any viable seed instead with such a chance, unless one has to be tried first."""
        self._exploring_L = np.where(np.isfinite(self._best_L), chance_L, 0.0)
        drawn = np.flatnonzero(rng.random(len(chosen_L)) < self._exploring_L)
        if len(drawn):
            chosen_L[drawn] = _drawn(self.scores_KL[:, drawn] > -np.inf, rng)

    def chances(self) -> Floats:
        """How likely each seed was to be chosen by these scores, (K, L); 0 where none was viable.

        Example:
            >>> picking = BestOfEach(layers=2, seeds=2)
            >>> picking.scores_KL[:] = [[0.5, -np.inf], [0.5, 0.2]]
            >>> chosen_L = picking.best(np.random.default_rng(0))
            >>> picking.chances().tolist()
            [[0.5, 0.0], [0.5, 1.0]]
        """
        viable_KL = self.scores_KL > -np.inf
        tied_KL = self._tied_KL & viable_KL
        chances_KL: Floats = tied_KL / np.maximum(np.add.reduce(tied_KL), 1)
        if self._exploring_L is not None:
            even_KL = viable_KL / np.maximum(np.add.reduce(viable_KL), 1)
            chances_KL += self._exploring_L * (even_KL - chances_KL)
        return chances_KL


def _drawn(among_KT: NDArray[np.bool_], rng: np.random.Generator) -> Whole:
    """One of those that are among the drawn, all alike."""
    counts_T = np.add.reduce(among_KT, dtype=np.intp)
    nth_T = (rng.random(len(counts_T)) * counts_T).astype(np.intp)
    chosen_T: Whole = (among_KT.cumsum(axis=0) > nth_T).argmax(axis=0)
    return chosen_T
