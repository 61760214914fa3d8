"""Life cycle of a seed: the table of allowed steps; every other step is an error."""

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
"""States in which a kernel is there and has no part in the layer's output."""

BLENDED = frozenset({_S.BLENDING, _S.HOLDING})
"""States in which the layer's output contains the kernel's, times alpha."""

RESTING = frozenset({_S.FOSSILIZED, _S.CULLED})
"""States in which the graft is over and the slot cools down."""


def check(seed: str, old: SeedState, new: SeedState) -> None:
    """Refuse a step from ``old`` to ``new`` that the table does not have.

    Raises:
        LifecycleError: naming the seed, both states, and the allowed steps.

    Example:
        >>> check("2 of layer 'fc1'", SeedState.DORMANT, SeedState.GERMINATED)
    """
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(TRANSITIONS[old])
        raise LifecycleError(f"seed {seed} is {old} and cannot become {new}; allowed: {allowed}")
