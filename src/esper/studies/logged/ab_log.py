"""A/B tests in logs: their declarations, decisions and outcomes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from esper.contracts.errors import ConfigError, unknown_name
from esper.studies.logged.logs import Log

_GUARDRAILS = {"failure_rate": 0.05, "culled_share": 0.10, "latency": 0.20}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """Figures of one arm so far.

    Attributes:
        arm: Name of the arm.
        strategy: Strategy of the arm.
        weight: Relative share of the units.
        units: Units assigned to the arm.
        decisions: Decisions of the arm.
        outcomes: Outcomes of them, failures included.
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
@dataclass(slots=True)
class Choice:
    """Decision of an arm; the reward is ``None`` until its outcome comes."""

    arm: str
    unit: str
    strategy: str
    reward: float | None = None
    failed: bool = False


@final
@dataclass(slots=True)
class LoggedTest:
    """Declarations, decisions and outcomes of one test.

    Attributes:
        salt: Name of the test.
        declared: Distinct declarations; the last counts.
        choices: Decisions by id.
        answered: Decisions with an outcome, in the order of the outcomes.
        judged: Arm, and whether its kernel was culled, in order.
        latencies: Arm and milliseconds, in order.
    """

    salt: str
    declared: list[Mapping[str, Any]] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    answered: list[Choice] = field(default_factory=list)
    judged: list[tuple[str, bool]] = field(default_factory=list)
    latencies: list[tuple[str, float]] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """Unit of assignment: ``"run"``, ``"layer"`` or ``"graft"``."""
        return str(self.declared[-1]["unit"]) if self.declared else "graft"

    @property
    def guardrails(self) -> dict[str, float]:
        """Limit of each guardrail; the defaults where the log does not say."""
        return _GUARDRAILS | (dict(self.declared[-1]["guardrails"]) if self.declared else {})

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each arm, in the order of the declaration; 1 where there is none."""
        if self.declared:
            return {arm["arm"]: float(arm["weight"]) for arm in self.declared[-1]["arms"]}
        return dict.fromkeys(sorted({choice.arm for choice in self.choices.values()}), 1.0)

    def arms(self) -> list[str]:
        """Names of all arms, declared or seen, the reference first."""
        # An arm that only an earlier declaration had is still in the log.
        return list(dict.fromkeys([*self.weights, *(c.arm for c in self.choices.values())]))

    def units(self, arm: str) -> set[str]:
        """Units assigned to an arm."""
        return {choice.unit for choice in self.choices.values() if choice.arm == arm}

    def rewards(self) -> list[tuple[str, float]]:
        """Arm and mean reward of every unit, in the order of their first outcomes."""
        by_unit: dict[tuple[str, str], list[float]] = {}
        for choice in self.answered:
            if choice.reward is not None:
                by_unit.setdefault((choice.arm, choice.unit), []).append(choice.reward)
        return [(arm, sum(found) / len(found)) for (arm, _), found in by_unit.items()]

    def result(self, arm: str) -> ArmResult:
        """Figures of an arm so far."""
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


def gather(logs: Iterable[Log]) -> dict[str, LoggedTest]:
    """Gather the tests in the logs, by salt."""
    tests: dict[str, LoggedTest] = {}
    for log in logs:
        chosen: dict[str, tuple[LoggedTest, Choice]] = {}
        for event in log.events:
            data = event.data
            if event.kind == "ab_test":
                found = tests.setdefault(data["test"], LoggedTest(data["test"]))
                if data not in found.declared:
                    found.declared.append(data)
            elif event.kind == "decision" and data.get("ab"):
                ab = data["ab"]
                found = tests.setdefault(ab["test"], LoggedTest(ab["test"]))
                choice = Choice(ab["arm"], ab["unit"], data["strategy"])
                found.choices[data["decision"]] = choice
                chosen[data["decision"]] = (found, choice)
            elif data.get("decision") in chosen:
                _take(event.kind, data, *chosen[data["decision"]])
    return tests


def _take(kind: str, data: Mapping[str, Any], test: LoggedTest, choice: Choice) -> None:
    if kind in ("outcome", "failure") and choice.reward is None:  # a second one does not count
        choice.reward = float(data.get("reward", 0.0))
        choice.failed = kind == "failure"
        test.answered.append(choice)
    elif kind in ("graft", "verdict"):  # a verdict in logs of schema 0
        test.judged.append((choice.arm, not data["kept"]))
    if kind in ("outcome", "timing") and data.get("latency_ms") is not None:
        test.latencies.append((choice.arm, float(data["latency_ms"])))


def find_test(tests: Mapping[str, LoggedTest], salt: str | None) -> LoggedTest:
    """Find a test by its salt, or the only one.

    Raises:
        ConfigError: if there is none of that name, or several to choose from.
    """
    if not tests:
        raise ConfigError(
            "no decision in this log is part of an A/B test; begin one with an ab_test in the "
            "settings, as in {salt: first, arms: {now: {strategy: ucb}, new: {strategy: auto}}}"
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


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
