"""Partial pooling: a layer begins with what its blueprints did in layers like it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.selection import SelectionContext, SelectionReason
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.strategies._base import (
    Metrics,
    SelectionStrategy,
    others,
    pick_best,
    require_number,
    rewards_of,
    tried,
)
from esper.services.tamiyo.strategies._imed import merits, shared
from esper.services.tamiyo.strategies._kinds import Kinds, kind_of
from esper.services.tamiyo.strategies._pooling import Standing

_PATIENCE = 20
"""Outcomes of a layer, per viable seed, after which each is tried for its own sake."""


@final
@dataclass(frozen=True)
class Hierarchical(SelectionStrategy):
    """Choose as `auto` does, among posterior means to which all layers of the history contribute.

    A seed's kind is the type of its layer and its blueprint. The mean reward of a kind in a layer
    is normal about the kind's mean, with a variance that is estimated from how much the layers
    differ. So a seed's mean is shrunk towards the mean of its kind in other layers, and less the
    more outcomes it has; its weight in the index is its outcomes and what the others are worth.

    The history is everything in the scope of the store: other layers, and other runs. A seed whose
    kind has an outcome in it needs no first try until its layer has 20 outcomes for each viable
    seed; then all are tried, so none starves. A seed without a blueprint is learnt alone.

    Neither a shift of all rewards nor a factor on them changes a choice.

    Args:
        exploration: Factor on the logarithm in the index, > 0.
        horizon: Outcomes up to which it is a logarithm, >= 1; beyond, it is nearly flat.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Morris (1983), Parametric Empirical Bayes Inference, JASA 78, section 1 (shrinkage with an
        estimated variance between groups); James & Stein (1961); Hedges (1983), A Random Effects
        Model for Effect Sizes, Psychological Bulletin 93 (the variance by the method of moments).
        The index is that of `auto`.

    Example:
        A blueprint earned 1.0 in layer fc1, four times. In layer fc2, where it was never tried, it
        has a mean of 1.0 that is worth ``1 / (0.25 + (0.25 + 1/4)) = 1.333`` outcomes.

        >>> one, two = Hierarchical().begin("fc1"), Hierarchical().begin("fc2")
        >>> two.join(one)
        >>> for _ in range(4):
        ...     one.take(0, "Linear/glu", 1.0)
        >>> [round(number, 3) for number in two.standing(5, "Linear/glu")]  # relative to 1.0
        [0.0, 1.333, 0.0, 1]
    """

    when: ClassVar[str] = "many layers share blueprints, and each has few choices of its own"
    name: ClassVar[str] = "hierarchical"
    exploration: float = 0.85
    horizon: float = 250.0

    def __post_init__(self) -> None:
        require_number("hierarchical.exploration", self.exploration, above=0)
        require_number("hierarchical.horizon", self.horizon, at_least=1)

    @override
    def begin(self, layer_name: str) -> Kinds:
        return Kinds(layer_name)

    @override
    def knows(self, viable: Sequence[int], metrics: Metrics, context: SelectionContext) -> set[int]:
        if sum([seed.outcomes for seed in metrics.values()]) >= _PATIENCE * len(viable):
            return set()
        standings = _standings(viable, metrics, context, _known_of(metrics, context))
        return {seed for seed, standing in standings.items() if standing.weight}

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        learned = _known_of(metrics, context)
        standings = _standings(viable, metrics, context, learned)
        noise = learned.pool.noise()
        scores = merits(_with_trials(standings, metrics), noise, self.exploration, self.horizon)
        chosen, share = pick_best(scores, rng)
        score = scores[chosen]
        return chosen, SelectionReason(
            "hierarchical",
            chosen,
            score,
            scores,
            share if share == 1 else shared(scores, share),
            _sentence(chosen, standings, noise, context.layer_type),
            False,
            others(viable, chosen),
        )


def _known_of(metrics: Metrics, context: SelectionContext) -> Kinds:
    """What was learnt; of hand-made metrics, what their windows hold."""
    found = getattr(metrics, "knowledge", None)
    if isinstance(found, Kinds):
        return found
    made = Kinds("")
    for seed in sorted(metrics):
        for reward in rewards_of(metrics[seed]):
            made.take(seed, _kind(seed, metrics, context), reward)
    return made


def _kind(seed_idx: int, metrics: Metrics, context: SelectionContext) -> str:
    blueprint = context.blueprints.get(seed_idx)
    if blueprint is None:
        blueprint = getattr(metrics.get(seed_idx), "blueprint", "")
    return kind_of(context.layer_type, blueprint)


def _standings(
    viable: Sequence[int], metrics: Metrics, context: SelectionContext, learned: Kinds
) -> dict[int, Standing]:
    return {seed: learned.standing(seed, _kind(seed, metrics, context)) for seed in viable}


def _with_trials(
    standings: dict[int, Standing], metrics: Metrics
) -> dict[int, tuple[float, float]]:
    """Mean and trials: what a belief is worth, and the choices whose outcome has not come."""
    means = [standing.mean for standing in standings.values() if standing.weight]
    average = sum(means) / len(means) if means else 0.0
    found = {}
    for seed, standing in standings.items():
        record = metrics.get(seed)
        trials = standing.weight + (record.pending if record else 0)
        if not standing.weight and record is not None:
            # Chosen, but nothing heard of it: an average seed, less promising at each try.
            trials = max(trials, record.total_activations - record.outcomes)
        found[seed] = (standing.mean if standing.weight else average, trials)
    return found


def _sentence(chosen: int, standings: dict[int, Standing], noise: float, layer_type: str) -> str:
    own = standings[chosen]
    if not own.weight:
        return "not ruled out: no outcome yet"
    basis = f"{tried(int(own.here))} here"
    if own.layers:
        kind = f"{layer_type} layer" if layer_type else "layer"
        plural = "s" if own.layers > 1 else ""
        basis += f", pooled from {own.layers} other {kind}{plural}"
    rivals = [
        standing.mean for seed, standing in standings.items() if seed != chosen and standing.weight
    ]
    if not rivals:
        return f"the only one with a mean; {basis}"
    ahead = (own.mean - max(rivals)) / noise
    lead = (
        f"best mean by {ahead:.1f} sd" if ahead >= 0 else f"not ruled out: {-ahead:.1f} sd behind"
    )
    return f"{lead}; {basis}"
