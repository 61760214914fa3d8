"""A choice, from its question to its record: context, constraints, reason, decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """

    current_epoch: int = 0
    layer_type: str = ""
    health: HealthSignal | None = None
    blueprints: Mapping[int, str] = field(default_factory=dict)
    urgency: float | None = None


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

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012 (read by pydantic)

    def __post_init__(self) -> None:
        if self.min_dormant_epochs < 0:
            raise ConfigError(
                f"constraints.min_dormant_epochs is {self.min_dormant_epochs}; it must be >= 0"
            )
        if self.max_concurrent_seeds < 1:
            raise ConfigError(
                f"constraints.max_concurrent_seeds is {self.max_concurrent_seeds}; it must be >= 1"
            )


@dataclass(frozen=True, slots=True)
class SelectionReason:
    """Why a seed was chosen.

    Attributes:
        strategy: Name of the strategy that chose.
        seed_idx: The chosen seed.
        score: Its score, in the strategy's own units; ``inf`` for a seed never tried.
        scores: Score of every viable seed.
        propensity: Probability, in (0, 1], with which the strategy chose this seed here.
        reason: One sentence for a person.
        fallback: Whether a soft constraint was overridden to choose at all.
        alternatives_considered: The other viable seeds.
    """

    strategy: str
    seed_idx: int
    score: float
    scores: Mapping[int, float]
    propensity: float
    reason: str
    fallback: bool = False
    alternatives_considered: tuple[int, ...] = ()


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
    """

    decision_id: str
    layer_name: str
    seed_idx: int
    blueprint: str
    epoch: int
    reason: SelectionReason
    random_key: tuple[int, str, int]
