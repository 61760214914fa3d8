"""Replay: the reward that another strategy would have earned, estimated from logged decisions.

Every logged decision is put to the other strategy (`replay_steps`); its probabilities, over those
that were logged, weigh the outcome (`off_policy`). The estimate is the mean reward of choices made
*once each from the logged histories*: learning from its own choices is not in it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from esper.contracts.errors import ConfigError
from esper.strategies import SelectionStrategy
from esper.studies.logged.logs import Log
from esper.studies.logged.off_policy import Array, Estimate, effective_sample_size, estimates
from esper.studies.logged.replay_steps import FLOOR, Step, steps

LARGEST_GAP = 0.01
"""Largest share of the strategy's choices on seeds that could not have been logged."""

LEAST_SAMPLE = 30.0
"""Smallest effective sample size for which there is an estimate."""

_LOG_ANEW = (
    "Log data that can be replayed with a strategy that leaves every seed a chance: "
    "seed_selection.strategy: epsilon_greedy (epsilon 0.1 or more, decay_rate 1.0), thompson or "
    "random, or an ab_test with such an arm"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Estimates of a strategy's mean reward, or the reason why there are none.

    Attributes:
        strategy: The strategy.
        choosers: Strategies that made the logged decisions.
        decisions: Logged decisions.
        outcomes: Decisions with an outcome; only they count.
        left_out: Why the decisions of some choosers, or some first tries, do not count.
        used: Outcomes that count.
        shared: Outcomes of them that any strategy would have had: first tries, fallbacks.
        gap: Mean probability, over the outcomes that count or else all, with which the strategy
            would have chosen a seed that could not have been logged.
        sample: Effective sample size.
        own_sample: Effective sample size without the shared outcomes; must be `LEAST_SAMPLE`.
        largest_weight: Largest share of one decision in the total weight.
        propensity_error: Largest error of a propensity that was used.
        estimates: Logged mean, ips, snips, dr; empty if refused.
        refusal: Why there is no estimate; empty if there is.
    """

    strategy: str
    choosers: tuple[str, ...]
    decisions: int
    outcomes: int
    left_out: Mapping[str, str]
    used: int
    shared: int
    gap: float
    sample: float
    own_sample: float
    largest_weight: float
    propensity_error: float
    estimates: tuple[Estimate, ...]
    refusal: str = ""


def replay(logs: Iterable[Log], strategy: SelectionStrategy) -> Replay:
    """Estimate from logs the mean reward of ``strategy``.

    Raises:
        ConfigError: if there is no decision in the logs, or none has an outcome.
        StoreError: if an event cannot be read.
    """
    decisions, found = 0, list[Step]()
    for log in logs:
        made, some = steps(log, strategy)
        decisions += made
        found.extend(some)
    if not decisions:
        raise ConfigError("there is no decision in these logs; nothing was chosen, or elsewhere")
    if not found:
        raise ConfigError(
            f"none of the {decisions} decisions in these logs has an outcome yet; wait for one"
        )
    # Left out by what was and would have been chosen, never by the outcome: this is no bias.
    kept = [step for step in found if not (step.first_try and step.gap > FLOOR)] or found
    left_out = _left_out(kept, strategy.name)
    usable = [step for step in kept if step.chooser not in left_out]
    used = usable or kept
    weights = np.array([step.weight for step in used])
    sample = effective_sample_size(weights)
    own_sample = effective_sample_size(np.array([one.weight for one in used if not one.shared]))
    refusal = "" if usable else f"{'; '.join(left_out.values())}. {_LOG_ANEW}"
    if usable and own_sample < LEAST_SAMPLE:
        refusal = _too_few(used, own_sample, strategy.name)
    return Replay(
        strategy=strategy.name,
        choosers=tuple(dict.fromkeys(step.chooser for step in found)),
        decisions=decisions,
        outcomes=len(found),
        left_out=left_out | _first_tries_left_out(len(found) - len(kept), strategy.name),
        used=len(usable),
        shared=sum(step.shared for step in usable),
        gap=_mean_gap(used),
        sample=sample if usable else 0.0,
        own_sample=own_sample if usable else 0.0,
        largest_weight=float(weights.max() / weights.sum()) if weights.any() else 0.0,
        propensity_error=max(step.error for step in used),
        estimates=() if refusal else tuple(_estimates(used, weights)),
        refusal=refusal,
    )


def _too_few(used: Sequence[Step], sample: float, name: str) -> str:
    shared = sum(step.shared for step in used)
    if len(used) - shared < LEAST_SAMPLE:
        first = f", {shared} of them of first tries, alike for every strategy" if shared else ""
        return (
            f"there are too few outcomes: {len(used)}{first}; at least {LEAST_SAMPLE:.0f} are "
            "needed in which the strategy has a say. Give more runs, or longer ones"
        )
    return (
        f"the log agrees with {name} too seldom: {len(used)} outcomes count as {sample:.1f} where "
        f"it has a say, at least {LEAST_SAMPLE:.0f} are needed. Give more runs. {_LOG_ANEW}"
    )


def _estimates(used: Sequence[Step], weights: Array) -> list[Estimate]:
    rewards, expected, predicted = (
        np.array([getattr(step, name) for step in used])
        for name in ("reward", "expected", "predicted")
    )
    return estimates(rewards, weights, expected, predicted)


def _first_tries_left_out(count: int, name: str) -> dict[str, str]:
    """Message about first tries that would not have been first tries of the strategy."""
    if not count:
        return {}
    tries = "1 first try" if count == 1 else f"{count} first tries"
    return {
        "first tries": f"{tries} of seeds that {name} need not have tried: it might have chosen "
        "another"
    }


def _left_out(found: Sequence[Step], name: str) -> dict[str, str]:
    """Choosers that could not have made the strategy's choices, and why.

    All decisions of such a chooser are left out, whatever their outcomes: this is no bias.
    """
    why = {}
    for chooser in dict.fromkeys(step.chooser for step in found):
        theirs = [step for step in found if step.chooser == chooser]
        gap = _mean_gap(theirs)
        if gap > LARGEST_GAP:
            own = [step for step in theirs if not (step.shared or step.first_try)]
            certain = all(step.propensity >= 1 - 1e-9 for step in own)
            because = "it is deterministic" if certain else "their logged probability is 0"
            why[chooser] = (
                f"{gap:.1%} of what {name} would have chosen could never stand in the log of "
                f"{chooser}: {because}"
            )
    return why


def _mean_gap(found: Sequence[Step]) -> float:
    return float(np.mean([step.gap for step in found]))
