"""Which step of a seed's life may follow which: one table, and everything else is an error."""

from types import MappingProxyType

from esper.contracts.errors import LifecycleError
from esper.contracts.seeds import SeedState

_S = SeedState

TRANSITIONS = MappingProxyType(
    {
        _S.DORMANT: (_S.GERMINATED,),
        _S.GERMINATED: (_S.TRAINING, _S.CULLED),
        _S.TRAINING: (_S.BLENDING, _S.CULLED),
        _S.BLENDING: (_S.HOLDING, _S.CULLED),
        _S.HOLDING: (_S.FOSSILIZED, _S.CULLED),
        _S.FOSSILIZED: (_S.DORMANT,),
        _S.CULLED: (_S.DORMANT,),
    }
)

ISOLATED = frozenset({_S.GERMINATED, _S.TRAINING})
"""A kernel is there, and the layer's output does not know of it."""

BLENDED = frozenset({_S.BLENDING, _S.HOLDING})
"""The kernel's output, times alpha, is part of the layer's output."""

RESTING = frozenset({_S.FOSSILIZED, _S.CULLED})
"""The trip is over and the slot cools down."""


def check(seed: str, old: SeedState, new: SeedState) -> None:
    """Refuse a step that the table does not have.

    Args:
        seed: The seed's name for the message, as ``"fc1:2"``.
        old: Where the seed stands.
        new: Where it is asked to go.

    Raises:
        LifecycleError: naming the seed, both states, and what would be allowed.

    Example:
        >>> check("fc1:2", SeedState.DORMANT, SeedState.GERMINATED)
    """
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(TRANSITIONS[old])
        raise LifecycleError(f"seed {seed} is {old} and cannot become {new}; allowed: {allowed}")
