"""A choice, from its question to its record: context, constraints, reason, decision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, isinf
from typing import Any

from esper.contracts._read_once import Others, Propensity, Scores, Sentence
from esper.contracts.errors import ConfigError
from esper.contracts.health import HealthSignal
from esper.contracts.propensities import ROUNDING, Chance, Propensities, worked_out

MOST_SEEDS = 1 << 20
"""A layer has fewer seeds than this; a larger index is a mistake."""


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """What is known when a seed is chosen.

    Attributes:
        current_epoch: Epoch of the choice, >= 0; cooldowns are counted in it.
        layer_type: Class name of the host layer, as ``"Linear"``; empty if unknown.
        health: The layer's latest health signal, if there is one.
        blueprints: Blueprint bound to each seed, where known.
        urgency: How much Tamiyo wants this graft, in [0, 1], if it asked for it.
        parameters: Parameters that the kernel of each seed would have, where known.

    A number that is NaN or infinite counts as unmeasured; so does what is left out.

    Raises:
        ConfigError: if ``current_epoch`` is not a whole number >= 0, or something is of another
            type than it should be.
    """

    current_epoch: int = 0
    layer_type: str = ""
    health: HealthSignal | None = None
    blueprints: Mapping[int, str] = field(default_factory=dict)
    urgency: float | None = None
    parameters: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_whole("current_epoch", self.current_epoch, 0)
        if self.layer_type.__class__ is not str:
            raise ConfigError(f"layer_type is {self.layer_type!r}; it must be a name, or empty")
        if self.health is not None and not isinstance(self.health, HealthSignal):
            raise ConfigError(f"health is {self.health!r}; it must be a HealthSignal, or None")
        if self.urgency is not None:
            _require_measurable("urgency", self.urgency)
        if self.blueprints or self.blueprints is None:
            _require_by_seed("blueprints", self.blueprints)
            for seed, name in self.blueprints.items():
                if not isinstance(name, str):
                    raise ConfigError(f"blueprints[{seed}] is {name!r}; it must be a name")
        if self.parameters or self.parameters is None:
            _require_by_seed("parameters", self.parameters)
            for seed, count in self.parameters.items():
                _require_measurable(f"parameters[{seed}]", count)


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


@dataclass(frozen=True, init=False)
class SelectionReason:
    """Why a seed was chosen.

    Attributes:
        strategy: Name of the strategy that chose.
        seed_idx: The chosen seed.
        score: Its score, in the strategy's own units; ``inf`` for a seed never tried.
        scores: Score of every viable seed. Given as a mapping, or as a tuple of the seeds and their
            scores side by side, which nobody may change any more; always read as a mapping.
        propensity: Probability, in (0, 1], with which the strategy chose this seed here. Given as a
            number, as a `Chance`, or as the probabilities of all seeds; always read as a number.
        reason: One sentence for a person. Given as a string, or as a call without arguments that
            makes it when it is first read, since most are never read; always read as a string. Such
            a call must depend on nothing that changes after the choice: best a `functools.partial`
            of a function and the numbers in the sentence.
        fallback: Whether a soft constraint was overridden to choose at all.
        alternatives_considered: The other viable seeds; given as such, or as a list of all viable
            seeds, which nobody may change any more.
        features: What a contextual strategy saw of the chosen seed; it learns from them later.
    """

    strategy: str
    seed_idx: int
    score: float
    scores: Scores = Scores()  # noqa: RUF009 (a descriptor)
    propensity: Propensity = Propensity()  # noqa: RUF009 (a descriptor)
    reason: Sentence = Sentence()  # noqa: RUF009 (a descriptor)
    fallback: bool = False
    alternatives_considered: Others = Others()  # noqa: RUF009 (a descriptor)
    features: tuple[float, ...] = ()

    def __init__(  # noqa: PLR0913, PLR0917 (its fields)
        self,
        strategy: str,
        seed_idx: int,
        score: float,
        scores: Mapping[int, float] | tuple[Sequence[int], Sequence[float]],
        propensity: float | Mapping[int, float] | Chance,
        reason: str | Callable[[], str],
        fallback: bool = False,
        alternatives_considered: tuple[int, ...] | list[int] = (),
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

    @property
    def propensities(self) -> Mapping[int, float]:
        """Probability of every viable seed, worked out when it is first read.

        Of a reason that only has a number, what that leaves is spread evenly over the others.
        """
        return self._spread().by_seed

    @property
    def propensity_error(self) -> float:
        """Largest absolute error of one of `propensities`; 0 where they are exact."""
        return self._spread().error

    @property
    def knows_propensities(self) -> bool:
        """Whether `propensities` are more than what one number implies."""
        values = self.__dict__
        value = values.get("_chance", values["propensity"])
        if not isinstance(value, int | float):
            return True
        return value >= 1.0 - ROUNDING or len(self.alternatives_considered) < 2

    def with_propensities(self, chances: Propensities) -> "SelectionReason":
        """The same reason, knowing the probabilities of all seeds."""
        made = object.__new__(SelectionReason)
        made.__dict__.update(self.__dict__)
        made.__dict__["_chance"] = chances
        made.__dict__.pop("_found", None)
        return made

    def without_features(self) -> "SelectionReason":
        """The same reason for whoever cannot read the chooser's features."""
        made = object.__new__(SelectionReason)
        made.__dict__.update(self.__dict__)
        made.__dict__["features"] = ()
        return made

    def _spread(self) -> Propensities:
        values = self.__dict__
        found: Propensities | None = values.get("_found")
        if found is None:
            given = values.get("_chance", values["propensity"])
            viable = sorted({self.seed_idx, *self.alternatives_considered})
            found = values["_found"] = worked_out(given, self.seed_idx, viable)
            if not isinstance(values["propensity"], int | float):
                values["_chance"] = given
                values["propensity"] = found.by_seed[self.seed_idx]
        return found


@dataclass(frozen=True, slots=True)
class Assigned:
    """The part that a choice plays in an A/B test.

    Attributes:
        test: The test's salt, which is its name.
        arm: The arm that decided.
        unit: What was assigned to it: a run, a layer of a run, or one graft.
    """

    test: str
    arm: str
    unit: str


@dataclass(frozen=True, kw_only=True, init=False)
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
        ab: Its part in an A/B test; ``None`` outside of one.
    """

    decision_id: str
    layer_name: str
    seed_idx: int
    blueprint: str
    epoch: int
    reason: SelectionReason
    random_key: tuple[int, str, int]
    layer_type: str = ""
    ab: Assigned | None = None

    def __init__(  # noqa: PLR0913 (its fields)
        self,
        *,
        decision_id: str,
        layer_name: str,
        seed_idx: int,
        blueprint: str,
        epoch: int,
        reason: SelectionReason,
        random_key: tuple[int, str, int],
        layer_type: str = "",
        ab: Assigned | None = None,
    ) -> None:
        # As for a reason: one is made at every choice.
        values = self.__dict__
        values["decision_id"] = decision_id
        values["layer_name"] = layer_name
        values["seed_idx"] = seed_idx
        values["blueprint"] = blueprint
        values["epoch"] = epoch
        values["reason"] = reason
        values["random_key"] = random_key
        values["layer_type"] = layer_type
        values["ab"] = ab


def reason_data(reason: SelectionReason) -> dict[str, Any]:
    """A reason as JSON data; the infinite score of a seed never tried becomes ``None``."""
    return {
        "strategy": reason.strategy,
        "score": _finite(reason.score),
        "scores": {str(seed): _finite(score) for seed, score in reason.scores.items()},
        **_propensity_data(reason),
        "reason": reason.reason,
        "fallback": reason.fallback,
        "alternatives": list(reason.alternatives_considered),
        "features": list(reason.features),
    }


def _propensity_data(reason: SelectionReason) -> dict[str, Any]:
    chances, error = reason.propensities, reason.propensity_error  # first: cheaper than one by one
    return {
        "propensity": reason.propensity,
        "propensities": {str(seed): chance for seed, chance in chances.items()},
        **({"propensity_error": error} if error else {}),
    }


def decision_data(decision: Decision) -> dict[str, Any]:
    """A decision as JSON data, the ``data`` of an event of kind ``"decision"``."""
    arm = {} if decision.ab is None else {"ab": asdict(decision.ab)}
    return {
        "decision": decision.decision_id,
        "layer": decision.layer_name,
        "seed": decision.seed_idx,
        "blueprint": decision.blueprint,
        "epoch": decision.epoch,
        "random_key": list(decision.random_key),
        "layer_type": decision.layer_type,
        **arm,
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
        ab=Assigned(**data["ab"]) if data.get("ab") else None,
        reason=_reason_from(data),
    )


def _reason_from(data: Mapping[str, Any]) -> SelectionReason:
    reason = SelectionReason(
        strategy=data["strategy"],
        seed_idx=data["seed"],
        score=_infinite(data["score"]),
        scores={int(seed): _infinite(score) for seed, score in data["scores"].items()},
        propensity=data["propensity"],
        reason=data["reason"],
        fallback=data["fallback"],
        alternatives_considered=tuple(data["alternatives"]),
        features=tuple(data.get("features", ())),
    )
    logged = data.get("propensities")
    if logged is None:  # written by an older version
        return reason
    chances = {int(seed): chance for seed, chance in logged.items()}
    return reason.with_propensities(Propensities(chances, data.get("propensity_error", 0.0)))


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number >= {least}")


def _require_measurable(name: str, value: object) -> None:
    try:
        isfinite(value)  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{name} is {value!r}; it must be a number; leave out what is not known"
        ) from error


def _require_by_seed(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {value!r}; it must be a mapping of seeds to values")
    for seed in value:
        if not isinstance(seed, int) or not 0 <= seed < MOST_SEEDS:
            raise ConfigError(f"{name} has the key {seed!r}; seeds are numbered from 0")


def _finite(score: float) -> float | None:
    return None if isinf(score) else score


def _infinite(score: float | None) -> float:
    return inf if score is None else score
