"""What to take by default: the strategy that does best over all kinds of rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
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
    tried,
)
from esper.services.tamiyo.strategies._imed import merits, shared
from esper.services.tamiyo.strategies._learned import learned_as
from esper.services.tamiyo.strategies._restarts import Restarting

_FRESH = 10
"""Outcomes per seed after a restart in which it is worth a word."""


@final
@dataclass(frozen=True)
class Auto(SelectionStrategy):
    """Take the seed with the least evidence against it, relative to what was spent on it.

    The index of a seed is ``gap^2 / (2 s^2) * n^2 / (n + 1/2) + exploration * phi(n)``, the
    smallest is chosen (`_imed` has the terms): ``gap`` is the distance of its mean from the best of
    the viable ones, ``s`` the noise of rewards, ``n`` its outcomes and the choices whose outcome
    has not come. The score is the negative index, in nats. Means, outcomes and noise are those
    since the rewards last changed (`_restarts`), so what held once is not believed for ever.

    Neither a shift of all rewards nor a factor on them changes a choice.

    Args:
        exploration: Factor on ``phi``, > 0: how much evidence a seed needs against it.
        horizon: Outcomes of a seed up to which ``phi`` is the logarithm, >= 1; beyond, it is
            nearly flat.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Honda & Takemura (2015), JMLR 16, algorithm 1 (IMED); Lai (1987), Annals of Statistics 15
        (the horizon); Liu, Lee & Shroff (2018), AAAI, algorithms 1 and 2 (restarts); the constants
        and what they cost are in docs/decisions/0016.

    Example:
        Seed 0 earned 1 and 3, seed 1 earned 1 and 2. Within seeds the squares are ``2 + 1/2``, of
        all four about their mean 2.75, so ``s^2 = (2.5 + 2.75 / 3) / 3 = 1.139``. Both had two
        outcomes: ``0.85 ln 2 = 0.589``; seed 1 is half a unit behind:
        ``0.25 / (2 * 1.139) * 4 / 2.5 = 0.176``.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1, 3]), 1: Seed(1, "fc1", rewards=[1, 2])}
        >>> chosen, reason = Auto().decide(
        ...     [0, 1], metrics, SelectionContext(), Draws(0, "fc1", 4)
        ... )
        >>> chosen, {seed: round(score, 3) for seed, score in reason.scores.items()}
        (0, {0: -0.589, 1: -0.765})
        >>> reason.reason
        'best mean by 0.5 sd over 2 outcomes'
    """

    when: ClassVar[str] = "nothing is known beforehand, steady or not; dozens of choices a layer"
    name: ClassVar[str] = "auto"
    exploration: float = 0.85
    horizon: float = 250.0

    def __post_init__(self) -> None:
        require_number("auto.exploration", self.exploration, above=0)
        require_number("auto.horizon", self.horizon, at_least=1)

    @override
    def begin(self, layer_name: str) -> Restarting:
        return Restarting()

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        learned = learned_as(Restarting, self.knowledge(metrics))
        known, noise = learned.means(), learned.noise()
        scores = merits(_standings(viable, metrics, known), noise, self.exploration, self.horizon)
        chosen, share = pick_best(scores, rng)
        score = scores[chosen]
        return chosen, SelectionReason(
            "auto",
            chosen,
            score,
            scores,
            share if share == 1 else shared(scores, share),
            _sentence(chosen, viable, known, noise) + _restarted(learned, len(known)),
            False,
            others(viable, chosen),
        )


def _standings(
    viable: Sequence[int], metrics: Metrics, known: Mapping[int, tuple[float, float]]
) -> dict[int, tuple[float, float]]:
    found = {}
    for seed in viable:
        record, standing = metrics.get(seed), known.get(seed)
        pending = record.pending if record else 0
        if standing is None:
            # Chosen, but nothing heard of it: an average seed, less promising at each try.
            lost = record.total_activations - record.outcomes if record else 0
            found[seed] = (_average(known), float(max(pending, lost)))
        else:
            found[seed] = (standing[0], standing[1] + pending) if pending else standing
    return found


def _average(known: Mapping[int, tuple[float, float]]) -> float:
    means = [mean for mean, _ in known.values()]
    # Deviations from one of the means: equal rewards then differ by exactly nothing.
    return means[0] + sum([mean - means[0] for mean in means]) / len(means) if means else 0.0


def _sentence(
    chosen: int, viable: Sequence[int], known: Mapping[int, tuple[float, float]], noise: float
) -> str:
    if chosen not in known:
        return "not ruled out: no outcome yet"
    mean, count = known[chosen]
    rivals = [known[seed][0] for seed in viable if seed != chosen and seed in known]
    outcomes = tried(int(count))
    if not rivals:
        return f"the only one with a mean, over {outcomes}"
    ahead = (mean - max(rivals)) / noise
    if ahead < 0:
        return f"not ruled out: {-ahead:.1f} sd behind, but only {outcomes}"
    return (
        f"best mean by {ahead:.1f} sd over {outcomes}"
        if isfinite(noise)
        else f"as good as any over {outcomes}"
    )


def _restarted(learned: Restarting, seeds: int) -> str:
    if not learned.restarts or (since := learned.since) >= _FRESH * seeds:
        return ""
    return (
        f"; restarted after a change, {tried(since)} ago" if since else "; restarted after a change"
    )
