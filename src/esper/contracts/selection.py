"""A choice, from its question to its record: context, constraints, decision."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from operator import index
from typing import Any, SupportsIndex, cast

from esper.contracts.errors import ConfigError, SelectionError
from esper.contracts.health import HealthSignal
from esper.contracts.names import is_name
from esper.contracts.reason import SelectionReason, reason_data, reason_from
from esper.contracts.site import Site

__all__ = [
    "MOST_SEEDS",
    "Assigned",
    "Decision",
    "SelectionConstraints",
    "SelectionContext",
    "SelectionReason",
    "checked_seeds",
    "decision_data",
    "decision_from",
    "reason_data",
    "require_seed",
    "whole",
]

MOST_SEEDS = 1 << 20
"""A layer has fewer seeds than this; a larger index is a mistake."""

_CHECKED: dict[bytes, list[int]] = {}
"""Lists of seeds that were found to be in order, sorted."""

_SMALL, _REMEMBERED = 256, 1024

_LARGEST = 2**53
"""JSON numbers are exact below."""


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """Context of a choice: epoch, layer, health, kernels.

    Attributes:
        current_epoch: Epoch of the choice, >= 0; cooldowns are counted in it.
        layer_type: Class name of the host layer, as ``"Linear"``; empty if unknown.
        health: The layer's latest health signal, if there is one.
        blueprints: Blueprint bound to each seed, where known.
        urgency: How much Tamiyo wants this graft, in [0, 1], if it asked for it.
        parameters: Parameters that the kernel of each seed would have, where known.
        promises: What the gradient promises of a kernel of each seed, where known: to first order,
            relative to the mean over all seeds that may grow now; >= 0.

    A number that is NaN or infinite counts as unmeasured; so does what is left out.

    Raises:
        ConfigError: if ``current_epoch`` is not a whole number in [0, 2**53), or something is of
            another type than it should be.
    """

    current_epoch: int = 0
    layer_type: str = ""
    health: HealthSignal | None = None
    blueprints: Mapping[int, str] = field(default_factory=dict)
    urgency: float | None = None
    parameters: Mapping[int, int] = field(default_factory=dict)
    promises: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.current_epoch.__class__ is not int or not 0 <= self.current_epoch < _LARGEST:
            epoch = whole("current_epoch", self.current_epoch, least=0, below=_LARGEST)
            object.__setattr__(self, "current_epoch", epoch)
        if self.layer_type.__class__ is not str:
            raise ConfigError(f"layer_type is {self.layer_type!r}; it must be a name, or empty")
        if self.health is not None and not isinstance(self.health, HealthSignal):
            raise ConfigError(f"health is {self.health!r}; it must be a HealthSignal, or None")
        if self.urgency is not None:
            _require_measurable("urgency", self.urgency)
        if self.blueprints or self.blueprints is None:
            _require_by_seed("blueprints", self.blueprints)
            for seed, name in self.blueprints.items():
                if not is_name(name):
                    raise ConfigError(f"blueprints[{seed}] is {name!r}; it must be a name")
        if self.parameters or self.parameters is None:
            _require_numbers("parameters", self.parameters)
        if self.promises or self.promises is None:
            _require_numbers("promises", self.promises)

    def promise_of(self, seed: int) -> float | None:
        """Promise of a seed's gradient; ``None`` where that is no finite number >= 0."""
        promise = self.promises.get(seed)
        return promise if promise is not None and 0 <= promise < inf else None


@dataclass(frozen=True, slots=True)
class SelectionConstraints:
    """Rules for which seeds are viable.

    Attributes:
        min_dormant_epochs: Cooldown between two activations of one seed, in epochs, >= 0. *Soft*:
            ``fallback_to_zero`` may override it.
        max_concurrent_seeds: Seeds of one layer that may be active at once, >= 1. *Hard*: at so
            many no other is chosen; an audition begun below may train more of them side by side.
        fallback_to_zero: When only cooldowns stand in the way, take seed 0, or the lowest seed
            that is merely cooling down, rather than none.

    Raises:
        ConfigError: if a value is out of range.
    """

    min_dormant_epochs: int = 5
    max_concurrent_seeds: int = 2
    fallback_to_zero: bool = True

    def __post_init__(self) -> None:
        for name, least in (("min_dormant_epochs", 0), ("max_concurrent_seeds", 1)):
            value = whole(f"constraints.{name}", getattr(self, name), least=least)
            object.__setattr__(self, name, value)
        if not isinstance(self.fallback_to_zero, bool):
            raise ConfigError(
                f"constraints.fallback_to_zero is {self.fallback_to_zero!r}; it must be true or "
                "false"
            )


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
        audition: Id of the audition that the seed takes part in; empty outside of one.
        depth: Relative depth of the layer, as in `HealthSignal`; ``None`` if unknown.
        promise: What the gradient promised of the seed, as in `SelectionContext`; ``None`` if
            unknown.
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
    audition: str = ""
    depth: float | None = None
    promise: float | None = None

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
        audition: str = "",
        depth: float | None = None,
        promise: float | None = None,
    ) -> None:
        # As for a reason: one is made at every choice.
        values = self.__dict__
        values["decision_id"], values["layer_name"] = decision_id, layer_name
        values["seed_idx"], values["blueprint"], values["epoch"] = seed_idx, blueprint, epoch
        values["reason"], values["random_key"] = reason, random_key
        values["layer_type"], values["ab"], values["audition"] = layer_type, ab, audition
        values["depth"], values["promise"] = depth, promise

    @property
    def site(self) -> Site:
        """Site of the kernel; ``layer_name`` is its text."""
        return Site.parse(self.layer_name)


def decision_data(decision: Decision) -> dict[str, Any]:
    """A decision as JSON data, the ``data`` of an event of kind ``"decision"``."""
    rare: dict[str, Any] = {} if decision.ab is None else {"ab": asdict(decision.ab)}
    if decision.audition:
        rare["audition"] = decision.audition
    if decision.depth is not None:
        rare["depth"] = decision.depth
    if decision.promise is not None:
        rare["promise"] = decision.promise
    return {
        "decision": decision.decision_id,
        "layer": decision.layer_name,
        "seed": decision.seed_idx,
        "blueprint": decision.blueprint,
        "epoch": decision.epoch,
        "random_key": list(decision.random_key),
        "layer_type": decision.layer_type,
        **rare,
        **reason_data(decision.reason),
    }


def decision_from(data: Mapping[str, Any]) -> Decision:
    """The decision that `decision_data` wrote down.

    Example:
        >>> from math import inf
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
        audition=data.get("audition", ""),
        depth=data.get("depth"),
        promise=data.get("promise"),
        reason=reason_from(data),
    )


def require_seed(layer_name: object, seed_idx: object) -> None:
    """Refuse what names no seed of any layer.

    Raises:
        SelectionError: if the layer's name is no string, or the index is out of range.
    """
    named = is_name(layer_name)
    if not named or not isinstance(seed_idx, int) or not 0 <= seed_idx < MOST_SEEDS:
        raise SelectionError(
            f"seed {seed_idx!r} of layer {layer_name!r}: a layer is named by a string in Unicode, "
            f"and its seeds are numbered from 0 to at most {MOST_SEEDS - 1:,}"
        )


def checked_seeds(layer_name: object, available: Sequence[int]) -> list[int]:
    """The seeds that may be chosen, sorted; the list may be shared and must not be changed.

    Raises:
        SelectionError: if there is none, or one is repeated, out of range or no whole number.
    """
    if not is_name(layer_name):
        raise SelectionError(f"layer {layer_name!r}: a layer is named by a string in Unicode")
    try:
        # Most layers are asked for the same few seeds; `bytes` takes small indices only.
        if type(available) is list and (known := _CHECKED.get(bytes(available))):
            return known
    except (TypeError, ValueError):
        pass
    try:
        seeds = sorted(map(index, available))
    except TypeError as error:
        raise SelectionError(
            f"layer {layer_name!r}: available seeds are {available!r}; give a list of seed indices"
        ) from error
    if not seeds:
        raise SelectionError(
            f"layer {layer_name!r}: no seed is available to choose from; ask again when one is "
            "dormant"
        )
    if seeds[0] < 0 or seeds[-1] >= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise SelectionError(
            f"layer {layer_name!r}: available seeds are {seeds}; each must be >= 0 and stand there "
            f"once, and be below {MOST_SEEDS:,}"
        )
    if type(available) is list and seeds[-1] < _SMALL and len(_CHECKED) < _REMEMBERED:
        _CHECKED[bytes(available)] = seeds
    return seeds


def whole(name: str, value: object, *, least: float = -inf, below: float = inf) -> int:
    """A whole number of any type, as those of numpy; true and false are none.

    Raises:
        ConfigError: if it is none, or not in [``least``, ``below``).

    Example:
        >>> whole("seed", 3.0)
        Traceback (most recent call last):
        ...
        esper.contracts.errors.ConfigError: seed is 3.0; it must be a whole number
    """
    try:
        found = None if isinstance(value, bool) else index(cast("SupportsIndex", value))
    except TypeError:
        found = None
    if found is None or found < least:
        bound = "" if least == -inf else f" >= {least}"
        raise ConfigError(f"{name} is {value!r}; it must be a whole number{bound}")
    if found >= below:
        raise ConfigError(f"{name} is {value!r}; it must be below {below:,}")
    return found


def _require_measurable(name: str, value: object) -> None:
    try:
        isfinite(value)  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{name} is {value!r}; it must be a number; leave out what is not known"
        ) from error


def _require_numbers(name: str, values: Mapping[int, Any]) -> None:
    _require_by_seed(name, values)
    for seed, value in values.items():
        _require_measurable(f"{name}[{seed}]", value)


def _require_by_seed(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {value!r}; it must be a mapping of seeds to values")
    for seed in value:
        if not isinstance(seed, int) or not 0 <= seed < MOST_SEEDS:
            raise ConfigError(f"{name} has the key {seed!r}; seeds are numbered from 0")
