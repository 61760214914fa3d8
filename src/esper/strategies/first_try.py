"""First tries of seeds without an outcome, before a strategy chooses among all."""

from collections.abc import Mapping
from functools import partial
from math import inf

from esper.contracts.reason import SelectionReason
from esper.records.layer import LayerMetrics
from esper.records.seed import SeedRecord
from esper.strategies.base import Choice, Draws, SelectionContext, SelectionStrategy

_NOTHING_KNOWN = SelectionContext()


def first_try(
    strategy: SelectionStrategy,
    viable: list[int],
    metrics: Mapping[int, SeedRecord],
    rng: Draws,
    context: SelectionContext = _NOTHING_KNOWN,
) -> Choice | None:
    """Choice of a seed never tried, drawn; ``None`` if there is none and ``strategy`` decides.

    Seeds that the strategy `knows` from elsewhere are left to it. A strategy that does not learn
    decides from the first choice on: forced tries would make one baseline a copy of another.
    """
    if not strategy.learns or _all_tried(viable, metrics):
        return None
    untried = [
        seed
        for seed in viable
        if (record := metrics.get(seed)) is None
        or not (record.outcomes or record.total_activations)
    ]
    if untried and (known := strategy.knows(viable, metrics, context)):
        untried = [seed for seed in untried if seed not in known]
    if not untried:
        return None
    chosen = untried[rng.index(len(untried))]
    return chosen, SelectionReason(
        strategy.name,
        chosen,
        inf,
        dict.fromkeys(untried, inf),
        dict.fromkeys(untried, 1 / len(untried)),
        partial(_sentence, len(untried), len(viable)),
        False,
        tuple([seed for seed in viable if seed != chosen]),
    )


def _all_tried(viable: list[int], metrics: Mapping[int, SeedRecord]) -> bool:
    """True if every seed was tried, told from the sums; if not, look at each record."""
    if not isinstance(metrics, LayerMetrics):
        return False
    sums = metrics.sums
    return sums.tried == len(metrics) and (
        viable == sums.seeds or all(map(metrics.__contains__, viable))
    )


def _sentence(untried: int, viable: int) -> str:
    if untried == 1:
        return f"untried, the last of {viable} viable seeds" if viable > 1 else "untried"
    return f"untried, like {untried} of {viable} viable seeds; drawn"
