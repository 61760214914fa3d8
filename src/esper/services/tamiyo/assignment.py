"""Sticky, seeded assignment of runs, layers or grafts to the arms of an A/B test.

An assignment is a function of salt and unit alone. It does not depend on process, order or what
else was assigned, so a run that is resumed, or a second machine, assigns alike.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b
from math import isfinite
from typing import Any, Literal, final

from typing_extensions import override

from esper.contracts.config import AbTest, Config
from esper.contracts.errors import ConfigError
from esper.contracts.selection import Assigned, Decision
from esper.records.history import BeginKnowledge, writer_of
from esper.records.layer import LayerKnowledge, LayerMetrics
from esper.records.seed import SeedRecord
from esper.strategies import STRATEGIES, SelectionStrategy

Unit = Literal["run", "layer", "graft"]


def arm_of(salt: str, unit: str, weights: Mapping[str, float]) -> str:
    """The arm of a unit: each with a probability in proportion to its weight.

    ``u = blake2b(salt, unit) / 2**64`` is uniform on [0, 1); the arm is the one whose share of
    [0, 1), in the order of the names, holds it.

    Args:
        salt: Name of the test; another salt, another and independent split.
        unit: Id of what is assigned.
        weights: Arm to weight, > 0 and finite.

    Raises:
        ConfigError: if there are fewer than two arms, or a weight is not > 0 and finite.

    Example:
        >>> arm_of("test-1", "letter/run-7", {"a": 1, "b": 1})
        'a'
        >>> split = [arm_of("test-1", str(unit), {"a": 1, "b": 3}) for unit in range(1000)]
        >>> split.count("a"), split == [
        ...     arm_of("test-1", str(unit), {"b": 3, "a": 1}) for unit in range(1000)]
        (224, True)
    """
    _check(weights)
    key = blake2b(unit.encode(), digest_size=8, key=blake2b(salt.encode()).digest()).digest()
    left = int.from_bytes(key, "big") / 2**64 * sum(weights.values())
    arm = ""
    for arm in sorted(weights):
        left -= weights[arm]
        if left < 0:
            break
    return arm


def unit_of(unit: Unit, decision_id: str, layer_name: str) -> str:
    """Id of the unit that a decision is assigned by: its run, its layer in the run, or itself.

    Example:
        >>> [unit_of(unit, "letter/run-7/fc1/3", "fc1") for unit in ("run", "layer", "graft")]
        ['letter/run-7', 'letter/run-7/fc1', 'letter/run-7/fc1/3']
    """
    if unit == "graft":
        return decision_id
    writer = writer_of(decision_id, layer_name)
    return writer if unit == "run" else f"{writer}/{layer_name}"


@final
class Assignment:
    """An A/B test as the selector uses it, in place of one strategy.

    Every arm's strategy learns from the outcomes of all arms; they differ in how they choose from
    the same history.

    Args:
        salt: Name of the test.
        arms: Arm to strategy, at least two; the first is what the others are compared with.
        weights: Arm to weight; all alike where left out.
        unit: What is assigned.
        guardrails: As in ``ab_test.guardrails``; goes into the log with the rest.

    Raises:
        ConfigError: if there are fewer than two arms, a weight is wrong or is for no arm.

    Example:
        >>> test = Assignment("t", {name: STRATEGIES.create(name) for name in ("ucb", "thompson")})
        >>> [test.turn(f"letter/r/fc1/{number}", "fc1")[0].arm for number in range(5)]
        ['thompson', 'ucb', 'thompson', 'thompson', 'ucb']
    """

    def __init__(
        self,
        salt: str,
        arms: Mapping[str, SelectionStrategy],
        *,
        weights: Mapping[str, float] | None = None,
        unit: Unit = "graft",
        guardrails: Mapping[str, float] | None = None,
    ) -> None:
        weights = dict.fromkeys(arms, 1.0) if weights is None else dict(weights)
        _check(weights)
        if set(weights) != set(arms):
            raise ConfigError(
                f"weights are for {', '.join(weights)}, but the arms are {', '.join(arms)}; give "
                "each arm one weight"
            )
        self.salt = salt
        self.arms = dict(arms)
        self.weights = weights
        self.unit: Unit = unit
        self.guardrails = dict(guardrails or {})

    @classmethod
    def of(cls, test: AbTest) -> "Assignment":
        """As the ``ab_test`` section says.

        Raises:
            ConfigError: if a strategy or a setting is unknown or wrong.
        """
        return cls(
            test.salt,
            {
                name: STRATEGIES.create(arm.strategy, **arm.settings)
                for name, arm in test.arms.items()
            },
            weights={name: arm.weight for name, arm in test.arms.items()},
            unit=test.unit,
            guardrails=test.guardrails.model_dump(),
        )

    def turn(self, decision_id: str, layer_name: str) -> tuple[Assigned, SelectionStrategy]:
        """Whose turn a decision is."""
        unit = unit_of(self.unit, decision_id, layer_name)
        arm = arm_of(self.salt, unit, self.weights)
        return Assigned(self.salt, arm, unit), self.arms[arm]

    def begin(self, layer_name: str) -> "KnowledgeOfArms":
        """Empty knowledge of a layer, for every arm."""
        begun = {name: arm.begin(layer_name) for name, arm in self.arms.items()}
        return KnowledgeOfArms(
            {name: made for name, made in begun.items() if made is not None},
            {name: arm.name for name, arm in self.arms.items()},
        )

    def seen_by(self, arm: str, metrics: Mapping[int, SeedRecord]) -> Mapping[int, SeedRecord]:
        """The live records as one arm's strategy sees them: with its own knowledge."""
        knowledge = getattr(metrics, "knowledge", None)
        if not isinstance(knowledge, KnowledgeOfArms):
            return metrics
        seen = LayerMetrics(knowledge.by_arm.get(arm))
        seen.update(metrics)
        if isinstance(metrics, LayerMetrics):
            seen.sums = metrics.sums
        return seen

    def declaration(self) -> dict[str, Any]:
        """The test as JSON data, the ``data`` of an event of kind ``"ab_test"``."""
        return {
            "test": self.salt,
            "unit": self.unit,
            "arms": [
                {
                    "arm": name,
                    "strategy": arm.name,
                    "settings": _settings(arm),
                    "weight": self.weights[name],
                }
                for name, arm in self.arms.items()
            ],
            "guardrails": self.guardrails,
        }

    def state_dict(self) -> dict[str, Any]:
        """The states of the arms' strategies, as JSON data."""
        return {name: arm.state_dict() for name, arm in self.arms.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked.

        Raises:
            ConfigError: if the state is of a test with other arms.
        """
        if set(state) != set(self.arms):
            raise ConfigError(
                f"the state is of {', '.join(state) or 'one strategy'}, but the A/B test has the "
                f"arms {', '.join(self.arms)}; resume with the settings that the run began with"
            )
        for name, arm in self.arms.items():
            arm.load_state_dict(state[name])


Chooser = SelectionStrategy | Assignment
"""A strategy, or an A/B test in which several take turns."""


def chooser_of(config: Config) -> Chooser:
    """Strategy of the settings, or an A/B test of several."""
    if config.ab_test is not None:
        return Assignment.of(config.ab_test)
    settings = config.seed_selection
    return STRATEGIES.create(settings.strategy, **settings.settings_of(settings.strategy))


def strategy_in_turn(
    chooser: Chooser, decision_id: str, layer_name: str, metrics: Mapping[int, SeedRecord]
) -> tuple[SelectionStrategy, Mapping[int, SeedRecord], Assigned | None]:
    """Strategy whose turn a decision is, the records as it sees them, and its part in a test."""
    if not isinstance(chooser, Assignment):
        return chooser, metrics, None
    assigned, strategy = chooser.turn(decision_id, layer_name)
    return strategy, chooser.seen_by(assigned.arm, metrics), assigned


def knowledge_of(chooser: Chooser) -> BeginKnowledge | None:
    """Maker of a layer's knowledge; ``None`` for strategies that read the records alone."""
    arms = chooser.arms.values() if isinstance(chooser, Assignment) else [chooser]
    learns = any(type(arm).begin is not SelectionStrategy.begin for arm in arms)
    return chooser.begin if learns else None


@final
class KnowledgeOfArms(LayerKnowledge):
    """Knowledge of several arms' strategies about one layer; all learn from all outcomes.

    Attributes:
        by_arm: Arm to its knowledge; without the arms that read the records alone.
        strategies: Arm to the name of its strategy.
    """

    __slots__ = ("by_arm", "strategies")

    def __init__(self, by_arm: dict[str, LayerKnowledge], strategies: Mapping[str, str]) -> None:
        self.by_arm = by_arm
        self.strategies = strategies

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        self.learn_measured(seed_idx, reward, 0.0, decision)

    @override
    def learn_measured(
        self, seed_idx: int, reward: float, stderr: float, decision: Decision | None
    ) -> None:
        for arm, knowledge in self.by_arm.items():
            seen = decision
            if decision is not None and decision.reason.strategy != self.strategies[arm]:
                # What another strategy saw of the seed is written in that strategy's own terms.
                seen = replace(decision, reason=decision.reason.with_(features=()))
            knowledge.learn_measured(seed_idx, reward, stderr, seen)

    @override
    def forget(self, seed_idx: int) -> None:
        for knowledge in self.by_arm.values():
            knowledge.forget(seed_idx)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {arm: knowledge.state_dict() for arm, knowledge in self.by_arm.items()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != set(self.by_arm):
            raise ConfigError(
                f"the state is of the arms {', '.join(state) or 'none'}, but those that learn are "
                f"{', '.join(self.by_arm) or 'none'}; it belongs to another A/B test"
            )
        for arm, knowledge in self.by_arm.items():
            knowledge.load_state_dict(state[arm])

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, KnowledgeOfArms):
            for arm, knowledge in self.by_arm.items():
                knowledge.join(other.by_arm[arm])


def _settings(strategy: SelectionStrategy) -> dict[str, Any]:
    if not is_dataclass(strategy):
        return {}
    return {item.name: getattr(strategy, item.name) for item in fields(strategy) if item.init}


def _check(weights: Mapping[str, float]) -> None:
    if len(weights) < 2:
        raise ConfigError(
            f"an A/B test has at least two arms, this one has {len(weights)}; with one, use its "
            "strategy as it is"
        )
    for arm, weight in weights.items():
        if not (weight > 0 and isfinite(weight)):
            raise ConfigError(f"arm {arm!r} has weight {weight!r}; it must be a number > 0")
