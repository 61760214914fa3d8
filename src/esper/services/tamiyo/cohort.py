"""Cohort: the seeds, of one layer or several, that train side by side before one is chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from esper.contracts.audition import NO_WORTHS, Arm, Worths
from esper.contracts.errors import NoViableSeedError
from esper.contracts.reason import SelectionReason
from esper.contracts.selection import Decision, SelectionContext, checked_seeds
from esper.records.draws import Draws
from esper.services.tamiyo.drawn import draw_arms
from esper.services.tamiyo.seed_selector import SeedSelector, Situation
from esper.strategies import SelectionStrategy

Asked = Mapping[str, tuple[Sequence[int], SelectionContext]]
"""Layers that may grow, with the seeds that are dormant and fit, and the context of each."""

_EVEN: Mapping[str, float] = MappingProxyType({})


def may_audition(selector: SeedSelector, *, always: bool = False) -> bool:
    """True of a strategy that learns from auditions; of any, if seeds always audition.

    In an A/B test there are none: its arms are to choose.
    """
    kind = type(selector.strategy)
    learns = issubclass(kind, SelectionStrategy) and kind.worths is not SelectionStrategy.worths
    return learns or (always and issubclass(kind, SelectionStrategy))


def worths_of(selector: SeedSelector, asked: Asked, scale: Mapping[str, float] = _EVEN) -> Worths:
    """Expected worths of the viable seeds; nothing if the strategy does not know."""
    with selector.performance_tracker.lock:
        return _worths(selector, asked, _situations(selector, asked)).scaled(scale)


def reserve_cohort(
    selector: SeedSelector,
    asked: Asked,
    scale: Mapping[str, float] = _EVEN,
    *,
    always: bool = False,
    most: int | None = None,
) -> list[Decision]:
    """Choose and reserve seeds that train side by side, of which the best is to go on.

    Each decision has a propensity of 1, since each of these seeds auditions, and the id of the
    audition. All but the best are withdrawn in the end.

    Args:
        selector: Knows who is viable, and the strategy.
        asked: The layers.
        scale: Factor on the worths of each layer, as for kernels that it has already.
        always: All viable seeds, however sure the strategy is.
        most: Number of seeds at most; by default all that may be the best. Of more, each is the
            best in a draw of its own.

    Returns:
        One decision for each seed; none if fewer than two are viable, or worth an audition.
    """
    with selector.performance_tracker.lock:
        found = _situations(selector, asked)
        strategy = selector.strategy
        if not isinstance(strategy, SelectionStrategy):
            return []
        worths = _worths(selector, asked, found).scaled(scale)
        cohort = worths.cohort()
        if always:
            cohort = [(name, seed) for name, layer in found.items() for seed in layer.viable]
        if len(cohort) < 2:
            return []
        if most is not None and len(cohort) > most:
            rng = Draws(selector.seed, "cohort", sum(it.number for it in found.values()))
            cohort = draw_arms(worths if worths.arms else _alike(cohort), most, rng)
        name = cohort[0][0]
        point = selector.performance_tracker.events.decision_id(name, found[name].number)
        why = f"auditions beside {len(cohort) - 1} other seed(s)"
        decisions = []
        for name, seed_idx in cohort:
            even = {seed: 0.0 for layer, seed in cohort if layer == name}
            reason = SelectionReason(strategy.name, seed_idx, 0.0, even, 1.0, why)
            context = asked[name][1]
            decisions.append(selector.reserve(name, reason, found[name], context, audition=point))
            found[name] = replace(found[name], number=found[name].number + 1)
    return decisions


def _alike(arms: Sequence[Arm]) -> Worths:
    """Worths for a strategy that knows none."""
    at = range(len(arms))
    rows = tuple([tuple([float(i == j) for j in at]) for i in at])
    return Worths(tuple(arms), tuple([1.0 for _ in at]), rows)


def _situations(selector: SeedSelector, asked: Asked) -> dict[str, Situation]:
    found = {}
    for name, (seeds, context) in asked.items():
        try:
            layer = selector.situation(name, checked_seeds(name, seeds), context)
        except NoViableSeedError:
            continue  # `decide` says why
        if layer.viable:
            found[name] = layer
    return found


def _worths(selector: SeedSelector, asked: Asked, found: Mapping[str, Situation]) -> Worths:
    strategy = selector.strategy
    if not isinstance(strategy, SelectionStrategy) or not found:
        return NO_WORTHS
    return strategy.worths(
        {name: (it.viable, it.metrics, asked[name][1]) for name, it in found.items()}
    )
