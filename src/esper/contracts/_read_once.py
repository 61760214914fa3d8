"""Fields of a `SelectionReason` that are worked out when they are first read; most never are."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, final

from esper.contracts.propensities import Chance

if TYPE_CHECKING:
    from esper.contracts.selection import SelectionReason


class _Field:
    def __set__(self, reason: "SelectionReason", value: object) -> None:
        raise AttributeError("a reason cannot be changed")


@final
class Propensity(_Field):
    """A float, or a `Chance` or mapping that becomes one when it is first read."""

    def __get__(self, reason: "SelectionReason | None", owner: type | None = None) -> float:
        if reason is None:
            raise AttributeError("propensity")  # the field has no default
        values = reason.__dict__
        value: float | Mapping[int, float] | Chance = values["propensity"]
        if isinstance(value, int | float):
            return value
        values["_chance"] = value
        chance = value[reason.seed_idx] if isinstance(value, Mapping) else value.of(reason.seed_idx)
        values["propensity"] = chance
        return chance


@final
class Scores(_Field):
    """A mapping, or seeds and their scores side by side, which become one when first read."""

    def __get__(
        self, reason: "SelectionReason | None", owner: type | None = None
    ) -> Mapping[int, float]:
        if reason is None:
            raise AttributeError("scores")  # the field has no default
        values = reason.__dict__
        value: Mapping[int, float] | tuple[Sequence[int], Sequence[float]] = values["scores"]
        if isinstance(value, tuple):
            value = values["scores"] = dict(zip(*value, strict=True))
        return value


@final
class Others(_Field):
    """The other seeds, or a list of all, which become the others when they are first read."""

    def __get__(
        self, reason: "SelectionReason | None", owner: type | None = None
    ) -> tuple[int, ...]:
        if reason is None:
            raise AttributeError("alternatives_considered")  # the field has no default
        values = reason.__dict__
        value: tuple[int, ...] | list[int] = values["alternatives_considered"]
        if isinstance(value, list):
            value = tuple([seed for seed in value if seed != reason.seed_idx])
            values["alternatives_considered"] = value
        return value


@final
class Sentence(_Field):
    """A string, or what makes one, which becomes one when it is first read."""

    def __get__(self, reason: "SelectionReason | None", owner: type | None = None) -> str:
        if reason is None:
            raise AttributeError("reason")  # the field has no default
        values = reason.__dict__
        value: str | Callable[[], str] = values["reason"]
        if not isinstance(value, str):
            value = values["reason"] = value()
        return value
