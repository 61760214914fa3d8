"""Analysis of an A/B test so far: verdicts that stay valid however often it is repeated.

Arms are compared with the first one, the reference, by `sequential.compare`, after every outcome in
order; with more than two arms, the risk of error is divided among the comparisons. Where runs or
layers are assigned, each counts once, with the mean of its outcomes, which are not independent.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from typing import final

import numpy as np
from numpy.typing import NDArray

from esper.contracts.errors import ConfigError
from esper.services.tamiyo.assignment import arm_of
from esper.studies.logged.ab_log import ArmResult, LoggedTest, find_test, gather
from esper.studies.logged.logs import Log
from esper.studies.logged.sequential import (
    ALPHA,
    Array,
    Sequence,
    chi_square,
    compare,
    compare_shares,
    still_needed,
)

ALIKE = 0.1
"""Difference in standard deviations below which arms are called alike."""

UNEVEN = 0.001
"""p-value below which a split does not fit the weights (Fabijan et al. 2019, KDD)."""

_UNITS = {"run": "runs", "layer": "layers", "graft": "grafts"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """Harm that an arm does, compared with the reference, and its limit.

    Attributes:
        name: ``failure_rate``, ``culled_share`` or ``latency``.
        worse_by: Difference of the means; of latency, relative to the reference's.
        low: Low end of its confidence sequence.
        high: High end.
        limit: Largest tolerated difference.
        state: ``"crossed"``, ``"kept"``, ``"not known yet"`` or ``"not measured"``.
    """

    name: str
    worse_by: float | None
    low: float | None
    high: float | None
    limit: float
    state: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One arm against the reference; differences in standard deviations within the arms.

    Attributes:
        arm: Name of the arm.
        reference: Name of the first arm.
        difference: Mean of ``arm`` minus that of ``reference``; ``None`` before there are some.
        low: Low end of the confidence sequence; ``None`` while it is unbounded.
        high: High end.
        confidence: Probability with which it holds the difference at all looks.
        state: ``"decided"``, ``"alike"``, ``"open"``, or ``"faded"``: it was decided, but 0 is in
            the interval again.
        decided_after: Units after which 0 was first outside.
        needed: Units that are still missing, if the difference stays; ``None`` if that is not
            known or hopeless.
        verdict: All this in a sentence.
        guardrails: Harm that the arm does.
        path: The whole sequence, in the reward's own units.
    """

    arm: str
    reference: str
    difference: float | None
    low: float | None
    high: float | None
    confidence: float
    state: str
    decided_after: int | None = None
    needed: int | None = None
    verdict: str = ""
    guardrails: tuple[Guardrail, ...]
    path: Sequence


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Test of the split of units against the weights.

    Attributes:
        chi_square: Pearson's statistic.
        p_value: Its p-value.
        moved: Units whose logged arm is not the one that salt and weights give.
        even: Whether the split can be trusted.
        advice: Sentence about the split, and the remedy if it cannot be trusted.
    """

    chi_square: float
    p_value: float
    moved: int
    even: bool
    advice: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AbResult:
    """Result of an A/B test so far.

    Attributes:
        test: Salt of the test.
        unit: Unit of assignment: ``"run"``, ``"layer"`` or ``"graft"``.
        arms: The arms, the reference first.
        comparisons: Each other arm against the reference.
        balance: Test of the split.
        verdicts: A sentence for each comparison, and for each arm that does harm; one alone if the
            split cannot be trusted.
    """

    test: str
    unit: str
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    balance: Balance
    verdicts: tuple[str, ...]


def analyse(logs: Iterable[Log], *, test: str | None = None) -> AbResult:
    """Analyse an A/B test in logs.

    Args:
        logs: The logs.
        test: Salt of the test; not needed where there is one test only.

    Raises:
        ConfigError: if there is no such test, several to choose from, or only one arm.
    """
    tests = gather(logs)
    found = find_test(tests, test)
    arms = found.arms()
    if len(arms) < 2:
        raise ConfigError(
            f"test {found.salt!r} has one arm in this log, {arms[0]!r}; there is nothing to compare"
        )
    balance = _balance(found, arms)
    alpha = ALPHA / (len(arms) - 1)
    comparisons = tuple(_compare(found, arms[0], arm, alpha) for arm in arms[1:])
    return AbResult(
        test=found.salt,
        unit=found.unit,
        arms=tuple(found.result(arm) for arm in arms),
        comparisons=comparisons,
        balance=balance,
        verdicts=tuple(_verdicts(balance, comparisons)),
    )


def _balance(test: LoggedTest, arms: list[str]) -> Balance:
    weights = test.weights
    counts = {arm: len(test.units(arm)) for arm in arms}
    known = [arm for arm in arms if arm in weights]
    value, p_value = chi_square([counts[a] for a in known], [weights[a] for a in known])
    moved = 0
    if test.declared:
        split = {(choice.unit, choice.arm) for choice in test.choices.values()}
        moved = sum(arm_of(test.salt, unit, weights) != arm for unit, arm in split)
    even = p_value >= UNEVEN and not moved
    shown = ", ".join(f"{arm} {counts[arm]}" for arm in arms)
    wanted = ":".join(f"{weights.get(arm, 0):g}" for arm in arms)
    if moved:
        advice = (
            f"{moved} units stand in another arm than salt and weights give: arms or weights were "
            "changed in mid-test. Do not trust the difference; begin anew with another salt"
        )
    elif not even:
        advice = (
            f"the split is {shown}, where the weights are {wanted} (p = {p_value:.1e}): units are "
            "missing from an arm. Do not trust the difference; see whether runs of one arm crash "
            "or lose their log, then begin anew with another salt"
        )
    else:
        advice = f"the split, {shown}, fits the weights {wanted} (p = {p_value:.2g})"
    return Balance(chi_square=value, p_value=p_value, moved=moved, even=even, advice=advice)


def _compare(test: LoggedTest, reference: str, arm: str, alpha: float) -> Comparison:
    values, second = _of_both(test.rewards(), reference, arm)
    path = compare(values, second, alpha=alpha)
    found = Comparison(
        arm=arm,
        reference=reference,
        difference=None,
        low=None,
        high=None,
        confidence=1 - alpha,
        state="open",
        guardrails=_guardrails(test, reference, arm, alpha),
        path=path,
    )
    if len(path.counts) and isfinite(path.sd[-1]) and path.sd[-1] > 0:
        found = _with_state(found, share=float(second.mean()), alpha=alpha)
    return replace(found, verdict=_in_words(found, _UNITS[test.unit]))


def _with_state(found: Comparison, *, share: float, alpha: float) -> Comparison:
    path, sd = found.path, float(found.path.sd[-1])
    low, high = float(path.low[-1]) / sd, float(path.high[-1]) / sd
    difference = float(path.difference[-1]) / sd
    at, needed = path.decided_at, None
    if at is not None:
        state = "faded" if low <= 0 <= high else "decided"
    elif low > -ALIKE and high < ALIKE:
        state = "alike"
    else:
        state = "open"
        if isfinite(difference) and 0 < share < 1:
            needed = still_needed(difference, len(path.counts), share, alpha=alpha)
    return replace(
        found,
        difference=_finite(difference),
        low=_finite(low),
        high=_finite(high),
        state=state,
        decided_after=None if at is None else int(path.counts[at]),
        needed=needed,
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _in_words(found: Comparison, units: str) -> str:
    arm, reference = found.arm, found.reference
    if found.difference is None:
        return f"{arm} and {reference} cannot be compared yet: too few outcomes, or no spread"
    better, worse = (arm, reference) if found.difference >= 0 else (reference, arm)
    low, high = found.low, found.high
    if low is None or high is None:
        band = "no bound yet"
    else:
        ends = (low, high) if found.difference >= 0 else (-high, -low)
        level = f"{100 * found.confidence:.3g} % confidence sequence"
        band = f"{level} {ends[0]:.2f} to {ends[1]:.2f}"
    earns = f"{better} earns {abs(found.difference):.2f} sd more than {worse} ({band})"
    if found.state == "decided":
        return f"{earns}: decided after {found.decided_after} {units}"
    if found.state == "alike":
        return f"{arm} and {reference} are alike, within {ALIKE} sd ({band}): decided"
    if found.state == "faded":
        return (
            f"{earns}: they differed after {found.decided_after} {units}, but less since; choose "
            "either, or look at the picture and go on"
        )
    if found.needed is None:
        return (
            f"not decided yet: {earns}; so small a difference needs more {units} than is sensible"
        )
    return (
        f"not decided yet: {earns}; about {_rounded(found.needed)} more {units} if the difference "
        "stays"
    )


def _guardrails(test: LoggedTest, reference: str, arm: str, alpha: float) -> tuple[Guardrail, ...]:
    failed = [(choice.arm, choice.failed) for choice in test.answered]
    limits = test.guardrails
    found = []
    for name, events in (("failure_rate", failed), ("culled_share", test.judged)):
        hits, second = _of_both(events, reference, arm)
        path = compare_shares(hits > 0, second, alpha=alpha)
        found.append(_guardrail(name, path, limits[name], 1.0))
    values, second = _of_both(test.latencies, reference, arm)
    base = float(values[~second].mean()) if not second.all() else 0.0
    path = compare(values, second, alpha=alpha)
    found.append(_guardrail("latency", path, limits["latency"], base))
    return tuple(found)


def _of_both(
    pairs: Iterable[tuple[str, float]], reference: str, arm: str
) -> tuple[Array, NDArray[np.bool_]]:
    """Values of two arms in order, and whether each is the second arm's."""
    of_both = [(name, value) for name, value in pairs if name in (reference, arm)]
    values = np.array([value for _, value in of_both], dtype=float)
    return values, np.array([name == arm for name, _ in of_both], dtype=bool)


def _guardrail(name: str, path: Sequence, limit: float, scale: float) -> Guardrail:
    if not len(path.counts) or not isfinite(path.difference[-1]) or not scale > 0:
        return Guardrail(
            name=name, worse_by=None, low=None, high=None, limit=limit, state="not measured"
        )
    low, high = float(path.low[-1]) / scale, float(path.high[-1]) / scale
    state = "not known yet"
    if low > limit:
        state = "crossed"
    elif high < limit:
        state = "kept"
    return Guardrail(
        name=name,
        worse_by=float(path.difference[-1]) / scale,
        low=_finite(low),
        high=_finite(high),
        limit=limit,
        state=state,
    )


def _verdicts(balance: Balance, comparisons: tuple[Comparison, ...]) -> list[str]:
    said = [one.verdict for one in comparisons]
    if not balance.even:
        return [f"no verdict: {balance.advice}"]
    for one in comparisons:
        said += [
            f"stop {one.arm}: its {rail.name.replace('_', ' ')} is worse than {one.reference}'s by "
            f"{rail.worse_by:.2f}, more than the {rail.limit:g} that is tolerated"
            for rail in one.guardrails
            if rail.state == "crossed"
        ]
    return said


def _rounded(number: int) -> str:
    """Number rounded to two digits; it is not known to more."""
    digits = max(len(str(number)) - 2, 0)
    return f"{round(number, -digits):,}"
