"""LayerArrays: one strategy chooses for thousands of layers at once.

Shapes: L layers, K seeds, N outcomes. Callers see (L, K), as views; inside everything is (K, L).
"""

from collections.abc import Iterator, Mapping
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper.contracts.errors import ConfigError, SelectionError
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.registry import Registry
from esper.services.tamiyo.columns import Columns, Floats, Whole
from esper.services.tamiyo.layer_checks import (
    checked_places,
    checked_rewards,
    checked_viable,
    require_whole,
)
from esper.services.tamiyo.layer_picking import BestOfEach
from esper.services.tamiyo.layer_reasons import reason_of
from esper.services.tamiyo.strategies import STRATEGIES, SelectionStrategy
from esper.services.tamiyo.strategies._base import require_number

COLUMNS: Registry[Columns] = Registry(
    "columns",
    {
        "window": "esper.services.tamiyo.columns:WindowColumns",
        "beliefs": "esper.services.tamiyo.strategies._belief_columns:BeliefColumns",
    },
    group="esper.columns",
)
"""What strategies can keep of many layers; `SelectionStrategy.columns` names one."""

_BLOCK = 2000
"""Outcomes that are taken in together: of eight seeds, arrays that caches hold."""

_NOBODY = -1
"""In place of a seed: none was viable."""

_PAST = -2
"""In place of a seed: no choice, or its layer has had outcomes since."""


@final
class LayerArrays:
    """Chooses a seed for each of many layers in one call, and learns from outcomes in batches.

    What `SeedSelector` does for one layer and for all strategies, this does for thousands and for
    strategies that can: every viable seed is tried once first, then the strategy's own formula
    decides; a choice is pending until its outcome or `withdraw_many`, and counts as one wherever
    pending choices do. As long as no seed has more outcomes than ``window_size``, choices are those
    of `SelectionStrategy.decide` on the same history, and where they are drawn, so are their
    probabilities; the draws themselves are others. Beyond, see `WindowColumns`.

    Layers and seeds are numbers; blueprints, cooldowns, reservations, stores and A/B tests are the
    business of `SeedSelector`. Which seeds are viable is the caller's to say, a seed whose outcome
    has not come is viable too unless he says no. For use by one thread at a time.

    Args:
        strategy: Who decides.
        layers: L, >= 1.
        seeds: K, >= 1.
        seed: Seed of all randomness, any integer; the draws of a call depend on it and on how many
            calls there were before.
        window_size: Outcomes of a seed that are remembered, >= 1.
        decay_factor: Weight of an outcome relative to the one after it, in (0, 1].

    Raises:
        ConfigError: if the strategy cannot decide over arrays, naming those that can, or another
            argument is out of range.

    Example:
        >>> from esper.services.tamiyo.strategies import STRATEGIES
        >>> many = LayerArrays(STRATEGIES.create("ucb"), layers=3, seeds=2)
        >>> for _ in range(2):
        ...     chosen_L = many.select_many()
        ...     many.update_many([0, 1, 2], chosen_L, 0.01 * chosen_L)
        >>> many.select_many().tolist(), round(many.explain(2).score, 2)
        ([1, 1, 1], 1.88)
    """

    def __init__(
        self,
        strategy: SelectionStrategy,
        layers: int,
        seeds: int,
        *,
        seed: int = 0,
        window_size: int = 20,
        decay_factor: float = 0.9,
    ) -> None:
        made = _columns_of(strategy)
        self.strategy = strategy
        self.layers = require_whole("layers", layers, least=1)
        self.seeds = require_whole("seeds", seeds, least=1)
        self.seed = require_whole("seed", seed)
        window_size = require_whole("window_size", window_size, least=1)
        require_number("decay_factor", decay_factor, above=0, at_most=1)
        self._columns = made(layers, seeds, window_size, decay_factor)
        self._calls = 0
        self._picking = BestOfEach(layers, seeds)
        self._every_L = np.arange(layers)
        self._chosen_L = np.full(layers, _PAST)

    def select_many(self, viable_LK: ArrayLike | None = None) -> Whole:
        """Choose a seed for every layer; each choice is pending from then on.

        Args:
            viable_LK: Which seeds may be chosen, booleans; ``None``: all. A layer without any is
                passed over, so this is also how to choose for some layers only.

        Returns:
            The seed of each layer; -1 where none was viable.

        Raises:
            SelectionError: if ``viable_LK`` is no array of booleans of the shape (L, K).
        """
        viable_KL = None
        if viable_LK is not None:
            viable_KL = checked_viable(viable_LK, self.layers, self.seeds).T
        known, picking = self._columns, self._picking
        rng = self._generator()
        self.strategy.score_layers(known, viable_KL, rng, picking.scores_KL)
        untried_KL = known.untried()
        if untried_KL is not None:
            np.copyto(picking.scores_KL, np.inf, where=untried_KL)
        if viable_KL is not None:
            np.copyto(picking.scores_KL, -np.inf, where=~viable_KL)
        chosen_L = picking.best(rng)
        exploring_L = self.strategy.exploring_layers(known)
        if exploring_L is not None:
            picking.explore(exploring_L, chosen_L, rng)
        self._calls += 1
        self._chosen_L = chosen_L
        if viable_KL is None:
            known.choose(self._every_L, chosen_L)
        else:
            layers_N = np.flatnonzero(chosen_L != _NOBODY)
            known.choose(layers_N, chosen_L[layers_N])
        return chosen_L.copy()

    def update_many(self, layers_N: ArrayLike, seeds_N: ArrayLike, rewards_N: ArrayLike) -> None:
        """Take in outcomes, in any number and order; those of one layer in the order given.

        An outcome answers a choice of its seed that is pending, if there is one. A graft that
        failed earned 0.

        Args:
            layers_N: Layer of each outcome, in [0, L).
            seeds_N: Seed of each, in [0, K).
            rewards_N: What each earned; more is better.

        Raises:
            SelectionError: if there is no such layer or seed; nothing is learnt then.
            MeasurementError: if a reward is not finite; nothing is learnt then.
        """
        layers, seeds = checked_places(layers_N, seeds_N, self.layers, self.seeds)
        rewards = checked_rewards(rewards_N, len(layers))
        self._chosen_L[layers] = _PAST
        for own in _rounds(layers):
            self._columns.learn(layers[own], seeds[own], rewards[own])

    def withdraw_many(self, layers_N: ArrayLike, seeds_N: ArrayLike) -> None:
        """No longer wait for the outcomes of choices that came to nothing.

        Raises:
            SelectionError: if there is no such layer or seed.
        """
        layers, seeds = checked_places(layers_N, seeds_N, self.layers, self.seeds)
        self._chosen_L[layers] = _PAST
        for own in _rounds(layers):
            self._columns.close(layers[own], seeds[own])

    @property
    def pending(self) -> NDArray[np.uint8]:
        """Choices of each seed of each layer without an outcome, (L, K); 32 are remembered."""
        return self._columns.pending_KL.T.copy()

    @property
    def scores(self) -> Floats:
        """What the latest `select_many` chose by, (L, K): the highest of a layer was chosen.

        Infinite where a seed was untried, minus infinity where it was not viable. Layers where any
        viable seed was due, as ``epsilon_greedy`` has them, were not chosen by it.
        """
        return self._picking.scores_KL.T.copy()

    @property
    def nbytes(self) -> int:
        """Bytes of state for each layer, all of its seeds; scratch arrays are not in it."""
        return self._columns.nbytes // self.layers

    def explain(self, layer: int) -> SelectionReason:
        """Why the latest choice of a layer was made, with the propensities of all viable seeds.

        To be asked before outcomes of the layer come in.

        Raises:
            SelectionError: if there is no such layer, nothing was chosen in it, or outcomes have
                changed since what was known then.
        """
        checked_places([layer], [0], self.layers, self.seeds)
        chosen = int(self._chosen_L[layer])
        if chosen == _NOBODY:
            raise SelectionError(f"layer {layer} had no viable seed, so there is no choice")
        if chosen == _PAST:
            raise SelectionError(
                f"layer {layer} has no choice to explain: it has had outcomes or withdrawals since "
                "its latest one, or never had one; ask between select_many() and update_many()"
            )
        scores = self._picking.scores_KL[:, layer].tolist()
        metrics = self._columns.metrics(layer, without=chosen)
        return reason_of(self.strategy, chosen, scores, metrics, SelectionContext())

    @property
    def propensities(self) -> Floats:
        """Probability of each seed at the latest `select_many`, (L, K); 0 where it was not viable.

        Raises:
            SelectionError: if scores are drawn, so that each layer's needs an integral; ask
                `propensities_of`.
        """
        if self.strategy.draws_scores:
            raise SelectionError(
                f"strategy {self.strategy.name!r} draws its scores, so the propensities of each "
                "layer are an integral; ask propensities_of() for the layers that matter"
            )
        return self._picking.chances().T.copy()

    def propensities_of(self, layer: int) -> dict[int, float]:
        """Probability of each viable seed at the latest choice of a layer; as `explain`."""
        return dict(self.explain(layer).propensities)

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt and is waited for as JSON data, random state included."""
        known = self._columns
        return {
            "strategy": self.strategy.name,
            "layers": self.layers,
            "seeds": self.seeds,
            "window_size": known.window_size,
            "decay_factor": known.decay_factor,
            "seed": self.seed,
            "calls": self._calls,
            "arrays": {name: getattr(known, name).ravel().tolist() for name in known.arrays},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked, bit for bit.

        Raises:
            ConfigError: if the state is of another strategy, of other numbers of layers or seeds or
                of another memory, or damaged; nothing is changed then.
        """
        for name, own in (
            ("strategy", self.strategy.name),
            ("layers", self.layers),
            ("seeds", self.seeds),
            ("window_size", self._columns.window_size),
            ("decay_factor", self._columns.decay_factor),
        ):
            if state.get(name) != own:
                raise ConfigError(
                    f"the state is of {name} {state.get(name)!r}, not of {own!r}; resume with what "
                    "the run began with"
                )
        calls = require_whole("calls of the state", state.get("calls"), least=0)
        seed = require_whole("seed of the state", state.get("seed"))
        self._columns.load(state.get("arrays"))
        self._calls, self.seed = calls, seed
        self._chosen_L.fill(_PAST)

    def _generator(self) -> np.random.Generator:
        # Nothing is carried from one call to the next, so a state needs no generator's.
        key = [abs(self.seed), int(self.seed < 0), self._calls]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def _columns_of(strategy: SelectionStrategy) -> type[Columns]:
    if not isinstance(strategy, SelectionStrategy):
        raise ConfigError(
            f"strategy is {strategy!r}; give an object, as STRATEGIES.create('ucb') makes it"
        )
    if not strategy.columns:
        able = [name for name in STRATEGIES.names() if STRATEGIES.load(name).columns]
        raise ConfigError(
            f"strategy {strategy.name!r} cannot decide for many layers at once; {', '.join(able)} "
            "can. Take one of these, or a SeedSelector, which asks any strategy layer by layer"
        )
    return COLUMNS.load(strategy.columns)


def _rounds(layers_N: Whole) -> Iterator[Whole | slice]:
    """Parts of a batch, in order, none of them large, in each of which no layer stands twice."""
    count = len(layers_N)
    if count < 2 or (layers_N[1:] > layers_N[:-1]).all():
        for start in range(0, count, _BLOCK):
            yield slice(start, start + _BLOCK)
        return
    order_N = layers_N.argsort(kind="stable")
    sorted_N = layers_N[order_N]
    starts = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))
    nth_N = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    by_round = order_N[nth_N.argsort(kind="stable")]
    for own in np.split(by_round, np.cumsum(np.bincount(nth_N))[:-1]):
        for start in range(0, len(own), _BLOCK):
            yield own[start : start + _BLOCK]
