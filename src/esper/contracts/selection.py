"""A choice, from its question to its record: context, constraints, reason, decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isinf
from typing import Any, Protocol

from esper.contracts.errors import ConfigError
from esper.contracts.health import HealthSignal


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """What is known when a seed is chosen.

    Attributes:
        current_epoch: Epoch of the choice, >= 0; cooldowns are counted in it.
        layer_type: Class name of the host layer, as ``"Linear"``; empty if unknown.
        health: The layer's latest health signal, if there is one.
        blueprints: Blueprint bound to each seed, where known.
        urgency: How much Tamiyo wants this graft, in [0, 1], if it asked for it.

    Raises:
        ConfigError: if ``current_epoch`` is not a whole number >= 0.
    """

    current_epoch: int = 0
    layer_type: str = ""
    health: HealthSignal | None = None
    blueprints: Mapping[int, str] = field(default_factory=dict)
    urgency: float | None = None

    def __post_init__(self) -> None:
        _require_whole("current_epoch", self.current_epoch, 0)


@dataclass(frozen=True, slots=True)
class SelectionConstraints:
    """Which seeds may be chosen at all.

    Attributes:
        min_dormant_epochs: Cooldown between two activations of one seed, in epochs, >= 0. *Soft*:
            ``fallback_to_zero`` may override it.
        max_concurrent_seeds: Seeds of one layer that may be active at once, >= 1. *Hard*.
        fallback_to_zero: When only cooldowns stand in the way, take seed 0, or the lowest seed
            that is merely cooling down, rather than none.

    Raises:
        ConfigError: if a value is out of range.
    """

    min_dormant_epochs: int = 5
    max_concurrent_seeds: int = 2
    fallback_to_zero: bool = True

    def __post_init__(self) -> None:
        _require_whole("constraints.min_dormant_epochs", self.min_dormant_epochs, 0)
        _require_whole("constraints.max_concurrent_seeds", self.max_concurrent_seeds, 1)
        if not isinstance(self.fallback_to_zero, bool):
            raise ConfigError(
                f"constraints.fallback_to_zero is {self.fallback_to_zero!r}; it must be true or "
                "false"
            )


class Chance(Protocol):
    """The propensities of a choice, worked out only when somebody reads them.

    A value: immutable, comparable, and the same answer at every call.
    """

    def of(self, seed_idx: int) -> float:
        """Probability with which ``seed_idx`` was chosen, in (0, 1]."""
        ...


class _Propensity:
    """A float, or a `Chance` that becomes one when it is first read."""

    def __get__(self, reason: "SelectionReason | None", owner: type | None = None) -> float:
        if reason is None:
            raise AttributeError("propensity")  # the field has no default
        value: float | Chance = reason.__dict__["propensity"]
        if isinstance(value, int | float):
            return value
        chance = value.of(reason.seed_idx)
        reason.__dict__["propensity"] = chance
        return chance

    def __set__(self, reason: "SelectionReason", value: object) -> None:
        raise AttributeError("a reason cannot be changed")


@dataclass(frozen=True, init=False)
class SelectionReason:
    """Why a seed was chosen.

    Attributes:
        strategy: Name of the strategy that chose.
        seed_idx: The chosen seed.
        score: Its score, in the strategy's own units; ``inf`` for a seed never tried.
        scores: Score of every viable seed.
        propensity: Probability, in (0, 1], with which the strategy chose this seed here. Given as a
            number or as a `Chance`; always read as a number.
        reason: One sentence for a person.
        fallback: Whether a soft constraint was overridden to choose at all.
        alternatives_considered: The other viable seeds.
        features: What a contextual strategy saw of the chosen seed; it learns from them later.
    """

    strategy: str
    seed_idx: int
    score: float
    scores: Mapping[int, float]
    propensity: _Propensity = _Propensity()
    reason: str  # type: ignore[misc]  # the descriptor above gives no default
    fallback: bool = False
    alternatives_considered: tuple[int, ...] = ()
    features: tuple[float, ...] = ()

    def __init__(  # noqa: PLR0913, PLR0917 (its fields)
        self,
        strategy: str,
        seed_idx: int,
        score: float,
        scores: Mapping[int, float],
        propensity: float | Chance,
        reason: str,
        fallback: bool = False,
        alternatives_considered: tuple[int, ...] = (),
        features: tuple[float, ...] = (),
    ) -> None:
        # One is made at every choice; what dataclass writes for a frozen class is slower.
        values = self.__dict__
        values["strategy"] = strategy
        values["seed_idx"] = seed_idx
        values["score"] = score
        values["scores"] = scores
        values["propensity"] = propensity
        values["reason"] = reason
        values["fallback"] = fallback
        values["alternatives_considered"] = alternatives_considered
        values["features"] = features


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A choice as it travels: it goes out with the graft and comes back with the outcome.

    Attributes:
        decision_id: Unique within a store.
        layer_name: The layer that grows.
        seed_idx: The chosen seed.
        blueprint: What is bound to the seed; empty if nothing is.
        epoch: When it was made.
        reason: Strategy, scores, propensity and sentence.
        random_key: What the random state was derived from: run seed, layer, number of the choice.
        layer_type: Class name of the host layer, as ``"Linear"``; empty if unknown.
    """

    decision_id: str
    layer_name: str
    seed_idx: int
    blueprint: str
    epoch: int
    reason: SelectionReason
    random_key: tuple[int, str, int]
    layer_type: str = ""


def reason_data(reason: SelectionReason) -> dict[str, Any]:
    """A reason as JSON data; the infinite score of a seed never tried becomes ``None``."""
    return {
        "strategy": reason.strategy,
        "score": _finite(reason.score),
        "scores": {str(seed): _finite(score) for seed, score in reason.scores.items()},
        "propensity": reason.propensity,
        "reason": reason.reason,
        "fallback": reason.fallback,
        "alternatives": list(reason.alternatives_considered),
        "features": list(reason.features),
    }


def decision_data(decision: Decision) -> dict[str, Any]:
    """A decision as JSON data, the ``data`` of an event of kind ``"decision"``."""
    return {
        "decision": decision.decision_id,
        "layer": decision.layer_name,
        "seed": decision.seed_idx,
        "blueprint": decision.blueprint,
        "epoch": decision.epoch,
        "random_key": list(decision.random_key),
        "layer_type": decision.layer_type,
        **reason_data(decision.reason),
    }


def decision_from(data: Mapping[str, Any]) -> Decision:
    """The decision that `decision_data` wrote down.

    Example:
        >>> reason = SelectionReason("ucb", 1, inf, {1: inf}, 1.0, reason="untried")
        >>> made = Decision(decision_id="a", layer_name="fc1", seed_idx=1, blueprint="glu",
        ...                 epoch=3, reason=reason, random_key=(0, "fc1", 0))
        >>> decision_from(decision_data(made)) == made
        True
    """
    run_seed, layer_name, number = data["random_key"]
    return Decision(
        decision_id=data["decision"],
        layer_name=data["layer"],
        seed_idx=data["seed"],
        blueprint=data["blueprint"],
        epoch=data["epoch"],
        random_key=(run_seed, layer_name, number),
        layer_type=data.get("layer_type", ""),
        reason=SelectionReason(
            strategy=data["strategy"],
            seed_idx=data["seed"],
            score=_infinite(data["score"]),
            scores={int(seed): _infinite(score) for seed, score in data["scores"].items()},
            propensity=data["propensity"],
            reason=data["reason"],
            fallback=data["fallback"],
            alternatives_considered=tuple(data["alternatives"]),
            features=tuple(data.get("features", ())),
        ),
    )


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number >= {least}")


def _finite(score: float) -> float | None:
    return None if isinf(score) else score


def _infinite(score: float | None) -> float:
    return inf if score is None else score
