"""SelectionReason: why a seed was chosen, and how likely each seed was."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isinf
from typing import Any, final

from esper.contracts.propensities import ROUNDING, Chance, Propensities, worked_out


class _WhenRead:
    """A field that may be given as what makes it; made when first read, as most never are."""

    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def given(self, reason: "SelectionReason | None") -> Any:
        if reason is None:
            raise AttributeError(self.name)  # so that the field has no default
        return reason.__dict__[self.name]

    def __set__(self, reason: "SelectionReason", value: object) -> None:
        raise AttributeError("a reason cannot be changed")


@final
class _Propensity(_WhenRead):
    def __get__(self, reason: "SelectionReason | None", owner: type | None = None) -> float:
        value = self.given(reason)
        return value if isinstance(value, int | float) else reason.propensities[reason.seed_idx]  # type: ignore[union-attr]  # `given` refused None


@final
class _Sentence(_WhenRead):
    def __get__(self, reason: "SelectionReason | None", owner: type | None = None) -> str:
        value = self.given(reason)
        if not isinstance(value, str):
            value = reason.__dict__[self.name] = value()
        return value  # type: ignore[no-any-return]


@final
class _Alternatives(_WhenRead):
    def __get__(
        self, reason: "SelectionReason | None", owner: type | None = None
    ) -> tuple[int, ...]:
        value: tuple[int, ...] | None = self.given(reason)
        if value is None and reason is not None:
            value = tuple([seed for seed in reason.scores if seed != reason.seed_idx])
            reason.__dict__[self.name] = value
        return value or ()


@final
@dataclass(frozen=True, init=False)
class SelectionReason:
    """Why a seed was chosen.

    Attributes:
        strategy: Name of the strategy that chose.
        seed_idx: The chosen seed.
        score: Its score, in the strategy's own units; ``inf`` for a seed never tried.
        scores: Score of every viable seed.
        propensity: Probability, in (0, 1], with which the strategy chose this seed here. Given as a
            number, as a `Chance`, or as the probabilities of all seeds; always read as a number.
        reason: One sentence. Given as a string, or as a call without arguments that makes it when
            it is first read and depends on nothing that changes after the choice.
        fallback: Whether a soft constraint was overridden to choose at all.
        alternatives_considered: The other viable seeds; by default the others of ``scores``.
        features: What a contextual strategy saw of the chosen seed; it learns from them later.
    """

    strategy: str
    seed_idx: int
    score: float
    scores: Mapping[int, float]
    propensity: _Propensity = _Propensity()
    reason: _Sentence = _Sentence()
    fallback: bool = False
    alternatives_considered: _Alternatives = _Alternatives()
    features: tuple[float, ...] = ()

    def __init__(  # noqa: PLR0913, PLR0917 (its fields)
        self,
        strategy: str,
        seed_idx: int,
        score: float,
        scores: Mapping[int, float],
        propensity: float | Mapping[int, float] | Chance,
        reason: str | Callable[[], str],
        fallback: bool = False,
        alternatives_considered: tuple[int, ...] | None = None,
        features: tuple[float, ...] = (),
    ) -> None:
        # One is made at every choice: a third of the time that a frozen dataclass takes by itself.
        values = self.__dict__
        values["strategy"], values["seed_idx"], values["score"] = strategy, seed_idx, score
        values["scores"], values["propensity"], values["reason"] = scores, propensity, reason
        values["fallback"], values["features"] = fallback, features
        values["alternatives_considered"] = alternatives_considered

    @property
    def propensities(self) -> Mapping[int, float]:
        """Probability of every viable seed, worked out when it is first read.

        Of a reason that only has a number, what that leaves is spread evenly over the others.
        """
        return self._propensities().by_seed

    @property
    def propensity_error(self) -> float:
        """Largest absolute error of one of `propensities`; 0 where they are exact."""
        return self._propensities().error

    @property
    def knows_propensities(self) -> bool:
        """True if `propensities` are more than what one number implies."""
        value = self.__dict__["propensity"]
        if not isinstance(value, int | float):
            return True
        return value >= 1.0 - ROUNDING or len(self.alternatives_considered) < 2

    def with_(self, **fields: Any) -> "SelectionReason":
        """The same reason with other fields; nothing is worked out for it."""
        made = object.__new__(SelectionReason)
        made.__dict__.update(self.__dict__ | fields)
        return made

    def _propensities(self) -> Propensities:
        given = self.__dict__["propensity"]
        if isinstance(given, Propensities):
            return given
        viable = sorted({self.seed_idx, *self.alternatives_considered})
        found = worked_out(given, self.seed_idx, viable)
        if not isinstance(given, int | float):
            self.__dict__["propensity"] = found  # worked out once
        return found


def reason_data(reason: SelectionReason) -> dict[str, Any]:
    """A reason as JSON data; the infinite score of a seed never tried becomes ``None``."""
    error = reason.propensity_error
    return {
        "strategy": reason.strategy,
        "score": _finite(reason.score),
        "scores": {str(seed): _finite(score) for seed, score in reason.scores.items()},
        "propensity": reason.propensity,
        "propensities": {str(seed): chance for seed, chance in reason.propensities.items()},
        **({"propensity_error": error} if error else {}),
        "reason": reason.reason,
        "fallback": reason.fallback,
        "alternatives": list(reason.alternatives_considered),
        "features": list(reason.features),
    }


def reason_from(data: Mapping[str, Any]) -> SelectionReason:
    """The reason that `reason_data` wrote down; ``data`` also has the chosen ``seed``."""
    propensity: float | Propensities = data["propensity"]
    if (logged := data.get("propensities")) is not None:
        chances = {int(seed): chance for seed, chance in logged.items()}
        propensity = Propensities(chances, data.get("propensity_error", 0.0))
    return SelectionReason(
        strategy=data["strategy"],
        seed_idx=data["seed"],
        score=_infinite(data["score"]),
        scores={int(seed): _infinite(score) for seed, score in data["scores"].items()},
        propensity=propensity,
        reason=data["reason"],
        fallback=data["fallback"],
        alternatives_considered=tuple(data["alternatives"]),
        features=tuple(data.get("features", ())),
    )


def _finite(score: float) -> float | None:
    return None if isinf(score) else score


def _infinite(score: float | None) -> float:
    return inf if score is None else score
