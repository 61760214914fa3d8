"""What an A/B test has shown so far: a verdict that may be asked for every day.

Arms are compared with the first one by `sequential.compare`, after every outcome in the order in
which outcomes came; with more than two arms, the risk of error is divided among the comparisons.
Where runs or layers are assigned, each counts once, with the mean of its outcomes: what one run or
layer yields is not independent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, final

import numpy as np

from esper.contracts.errors import ConfigError, unknown_name
from esper.services.tamiyo.assignment import arm_of
from esper.studies.logs import Log
from esper.studies.sequential import (
    ALPHA,
    Sequence,
    chi_square,
    compare,
    compare_shares,
    still_needed,
)

ALIKE = 0.1
"""Arms whose difference is surely less than this many standard deviations are called alike."""

UNEVEN = 0.001
"""p-value below which a split is not what the weights promise (Fabijan et al. 2019, KDD)."""

_UNITS = {"run": "runs", "layer": "layers", "graft": "grafts"}
_GUARDRAILS = {"failure_rate": 0.05, "culled_share": 0.10, "latency": 0.20}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm so far.

    Attributes:
        arm: Its name.
        strategy: Who decides in it.
        weight: Its share, relative.
        units: What was assigned to it.
        decisions: Choices that it made.
        outcomes: Those whose outcome came, failures included.
        mean: Mean reward of its units, in the reward's own units; ``None`` before the first.
        failure_rate: Share of the outcomes that were failures.
        culled_share: Share of the judged kernels that were culled.
        latency_ms: Mean latency of its kernels, where the log has it.
    """

    arm: str
    strategy: str
    weight: float
    units: int
    decisions: int
    outcomes: int
    mean: float | None
    failure_rate: float | None
    culled_share: float | None
    latency_ms: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """Whether an arm does harm, compared with the first.

    Attributes:
        name: ``failure_rate``, ``culled_share`` or ``latency``.
        worse_by: How much worse it is; of latency, relative to the first arm's.
        low: Low end of its confidence sequence.
        high: High end.
        limit: How much is tolerated.
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
    """One arm against the first; differences in standard deviations of the rewards within arms.

    Attributes:
        arm: The arm.
        reference: The first arm.
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
        guardrails: Whether it does harm.
        path: The sequence itself, for a picture, in the reward's own units.
    """

    arm: str
    reference: str
    difference: float | None
    low: float | None
    high: float | None
    confidence: float
    state: str
    decided_after: int | None
    needed: int | None
    verdict: str
    guardrails: tuple[Guardrail, ...]
    path: Sequence


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Whether units were split as the weights promise.

    Attributes:
        chi_square: Pearson's statistic.
        p_value: Its p-value.
        moved: Units whose logged arm is not the one that salt and weights give.
        even: Whether the split can be trusted.
        advice: What to think of it, or do.
    """

    chi_square: float
    p_value: float
    moved: int
    even: bool
    advice: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AbResult:
    """An A/B test so far.

    Attributes:
        test: Its salt.
        unit: What was assigned: ``"run"``, ``"layer"`` or ``"graft"``.
        arms: The arms, the first being what the others are compared with.
        comparisons: Each other arm against it.
        balance: Whether the split is what was asked for.
        verdicts: What to make of it: a sentence for each comparison, and for each arm that does
            harm; one alone if the split cannot be trusted.
    """

    test: str
    unit: str
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    balance: Balance
    verdicts: tuple[str, ...]


def analyse(logs: Iterable[Log], *, test: str | None = None) -> AbResult:
    """What the A/B test in these logs has shown so far.

    Args:
        logs: The logs.
        test: Its salt; not needed where there is one test only.

    Raises:
        ConfigError: if there is no such test, several to choose from, or only one arm.
    """
    tests = _gather(logs)
    found = _the_test(tests, test)
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


# --- reading --------------------------------------------------------------------------------------


@final
@dataclass(slots=True)
class _Choice:
    arm: str
    unit: str
    strategy: str
    reward: float | None = None
    failed: bool = False


@final
@dataclass(slots=True)
class _Test:
    """One test's declaration and decisions."""

    salt: str
    declared: list[Mapping[str, Any]] = field(default_factory=list)
    choices: dict[str, _Choice] = field(default_factory=dict)
    answered: list[_Choice] = field(default_factory=list)
    judged: list[tuple[str, bool]] = field(default_factory=list)
    latencies: list[tuple[str, float]] = field(default_factory=list)

    @property
    def unit(self) -> str:
        return str(self.declared[-1]["unit"]) if self.declared else "graft"

    @property
    def guardrails(self) -> dict[str, float]:
        return _GUARDRAILS | (dict(self.declared[-1]["guardrails"]) if self.declared else {})

    @property
    def weights(self) -> dict[str, float]:
        if self.declared:
            return {arm["arm"]: float(arm["weight"]) for arm in self.declared[-1]["arms"]}
        return dict.fromkeys(sorted({choice.arm for choice in self.choices.values()}), 1.0)

    def arms(self) -> list[str]:
        # An arm that only an earlier declaration had is still in the log.
        return list(dict.fromkeys([*self.weights, *(c.arm for c in self.choices.values())]))

    def units(self, arm: str) -> set[str]:
        return {choice.unit for choice in self.choices.values() if choice.arm == arm}

    def rewards(self) -> list[tuple[str, float]]:
        """Arm and mean reward of every unit, in the order in which they were first heard of."""
        by_unit: dict[tuple[str, str], list[float]] = {}
        for choice in self.answered:
            if choice.reward is not None:
                by_unit.setdefault((choice.arm, choice.unit), []).append(choice.reward)
        return [(arm, sum(found) / len(found)) for (arm, _), found in by_unit.items()]

    def result(self, arm: str) -> ArmResult:
        made = [choice for choice in self.choices.values() if choice.arm == arm]
        strategies = dict.fromkeys(choice.strategy for choice in made)
        declared = {a["arm"]: a["strategy"] for a in (self.declared or [{"arms": []}])[-1]["arms"]}
        answered = [choice for choice in self.answered if choice.arm == arm]
        rewards = [reward for name, reward in self.rewards() if name == arm]
        return ArmResult(
            arm=arm,
            strategy=", ".join(strategies) or declared.get(arm, ""),
            weight=self.weights.get(arm, 0.0),
            units=len(self.units(arm)),
            decisions=len(made),
            outcomes=len(answered),
            mean=_mean(rewards),
            failure_rate=_mean([float(choice.failed) for choice in answered]),
            culled_share=_mean([float(culled) for name, culled in self.judged if name == arm]),
            latency_ms=_mean([value for name, value in self.latencies if name == arm]),
        )


def _gather(logs: Iterable[Log]) -> dict[str, _Test]:
    tests: dict[str, _Test] = {}
    for log in logs:
        chosen: dict[str, tuple[_Test, _Choice]] = {}
        for event in log.events:
            data = event.data
            if event.kind == "ab_test":
                found = tests.setdefault(data["test"], _Test(data["test"]))
                if data not in found.declared:
                    found.declared.append(data)
            elif event.kind == "decision" and data.get("ab"):
                ab = data["ab"]
                found = tests.setdefault(ab["test"], _Test(ab["test"]))
                choice = _Choice(ab["arm"], ab["unit"], data["strategy"])
                found.choices[data["decision"]] = choice
                chosen[data["decision"]] = (found, choice)
            elif data.get("decision") in chosen:
                _take(event.kind, data, *chosen[data["decision"]])
    return tests


def _take(kind: str, data: Mapping[str, Any], test: _Test, choice: _Choice) -> None:
    if kind in ("outcome", "failure") and choice.reward is None:  # a second one does not count
        choice.reward = float(data.get("reward", 0.0))
        choice.failed = kind == "failure"
        test.answered.append(choice)
    elif kind == "verdict":
        test.judged.append((choice.arm, not data["kept"]))
    if kind in ("outcome", "timing") and data.get("latency_ms") is not None:
        test.latencies.append((choice.arm, float(data["latency_ms"])))


def _the_test(tests: Mapping[str, _Test], salt: str | None) -> _Test:
    if not tests:
        raise ConfigError(
            "no decision in this log is part of an A/B test; begin one with an ab_test section in "
            "the settings (unit, salt, and at least two arms, each with a strategy)"
        )
    if salt is not None:
        if salt not in tests:
            raise ConfigError(unknown_name("A/B test", salt, tests))
        return tests[salt]
    if len(tests) > 1:
        raise ConfigError(
            f"there are {len(tests)} A/B tests in this log, {', '.join(tests)}; say which with "
            "--test"
        )
    return next(iter(tests.values()))


# --- judging --------------------------------------------------------------------------------------


def _balance(test: _Test, arms: list[str]) -> Balance:
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


def _compare(test: _Test, reference: str, arm: str, alpha: float) -> Comparison:
    rewards = [(name, reward) for name, reward in test.rewards() if name in (reference, arm)]
    values = np.array([reward for _, reward in rewards])
    second = np.array([name == arm for name, _ in rewards], dtype=bool)
    path = compare(values, second, alpha=alpha)
    found = _Finding.of(path, float(second.mean()) if len(second) else 0.5, alpha)
    return Comparison(
        arm=arm,
        reference=reference,
        difference=found.difference,
        low=found.low,
        high=found.high,
        confidence=1 - alpha,
        state=found.state,
        decided_after=found.decided_after,
        needed=found.needed,
        verdict=_in_words(found, arm, reference, _UNITS[test.unit], alpha),
        guardrails=_guardrails(test, reference, arm, alpha),
        path=path,
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    difference: float | None
    low: float | None
    high: float | None
    state: str
    decided_after: int | None
    needed: int | None

    @classmethod
    def of(cls, path: Sequence, share: float, alpha: float) -> "_Finding":
        if not len(path.counts) or not isfinite(path.sd[-1]) or not path.sd[-1] > 0:
            return cls(
                difference=None, low=None, high=None, state="open", decided_after=None, needed=None
            )
        sd = float(path.sd[-1])
        low, high = float(path.low[-1]) / sd, float(path.high[-1]) / sd
        difference = float(path.difference[-1]) / sd
        at = path.decided_at
        needed = None
        if at is not None:
            state = "faded" if low <= 0 <= high else "decided"
        elif low > -ALIKE and high < ALIKE:
            state = "alike"
        else:
            state = "open"
            if isfinite(difference) and 0 < share < 1:
                needed = still_needed(difference, len(path.counts), share, alpha=alpha)
        return cls(
            difference=difference if isfinite(difference) else None,
            low=low if isfinite(low) else None,
            high=high if isfinite(high) else None,
            state=state,
            decided_after=int(path.counts[at]) if at is not None else None,
            needed=needed,
        )


def _in_words(found: _Finding, arm: str, reference: str, units: str, alpha: float) -> str:
    if found.difference is None:
        return f"{arm} and {reference} cannot be compared yet: too few outcomes, or no spread"
    better, worse = (arm, reference) if found.difference >= 0 else (reference, arm)
    low, high = found.low, found.high
    if low is None or high is None:
        band = "no bound yet"
    else:
        ends = (low, high) if found.difference >= 0 else (-high, -low)
        level = f"{100 * (1 - alpha):.3g} % confidence sequence"
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


def _guardrails(test: _Test, reference: str, arm: str, alpha: float) -> tuple[Guardrail, ...]:
    failed = [(choice.arm, choice.failed) for choice in test.answered]
    limits = test.guardrails
    found = []
    for name, facts in (("failure_rate", failed), ("culled_share", test.judged)):
        pairs = [(who, hit) for who, hit in facts if who in (reference, arm)]
        hits = np.array([hit for _, hit in pairs], dtype=bool)
        second = np.array([who == arm for who, _ in pairs], dtype=bool)
        path = compare_shares(hits, second, alpha=alpha)
        found.append(_guardrail(name, path, limits[name], 1.0))
    timed = [(who, value) for who, value in test.latencies if who in (reference, arm)]
    values = np.array([value for _, value in timed])
    second = np.array([who == arm for who, _ in timed], dtype=bool)
    base = float(values[~second].mean()) if timed and not second.all() else 0.0
    path = compare(values, second, alpha=alpha)
    found.append(_guardrail("latency", path, limits["latency"], base))
    return tuple(found)


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
        low=low if isfinite(low) else None,
        high=high if isfinite(high) else None,
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


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(number: int) -> str:
    """Two digits: more would be pretence."""
    digits = max(len(str(number)) - 2, 0)
    return f"{round(number, -digits):,}"
