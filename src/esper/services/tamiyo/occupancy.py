"""Which seeds may be chosen: cooldown, concurrency, reservation. Pure functions of plain values."""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from esper.contracts.selection import SelectionConstraints


class Sifted(NamedTuple):
    """Seeds by what stands in their way.

    Attributes:
        viable: Nothing does.
        cooling: Only a cooldown, which ``fallback_to_zero`` may override.
    """

    viable: list[int]
    cooling: list[int]


def sift(
    seeds: Sequence[int],
    active: Set[int],
    freed: Mapping[int, int],
    epoch: int,
    constraints: SelectionConstraints | None,
) -> Sifted:
    """Sort out which of ``seeds`` may be chosen.

    Args:
        seeds: The seeds asked for.
        active: Seeds of the layer that are reserved or busy, asked for or not.
        freed: Seed to the epoch at which its last activity ended.
        epoch: Now.
        constraints: The rules; ``None``: only ``active`` seeds are out of the question.

    Example:
        Seed 0 is busy, seed 1 was freed at epoch 4 and rests for 5 epochs:

        >>> sift([0, 1, 2], {0}, {1: 4}, 8, SelectionConstraints())
        Sifted(viable=[2], cooling=[1])
    """
    if at_rest(active, freed, epoch, constraints):
        return Sifted(list(seeds), [])
    if constraints is None:
        return Sifted([seed for seed in seeds if seed not in active], [])
    if len(active) >= constraints.max_concurrent_seeds:
        return Sifted([], [])
    latest = epoch - constraints.min_dormant_epochs
    viable: list[int] = []
    cooling: list[int] = []
    for seed in seeds:
        if seed in active:
            continue
        (viable if freed.get(seed, latest) <= latest else cooling).append(seed)
    return Sifted(viable, cooling)


def at_rest(
    active: Set[int],
    freed: Mapping[int, int],
    epoch: int,
    constraints: SelectionConstraints | None,
) -> bool:
    """Whether nothing stands in the way of any seed of a layer; arguments as for `sift`."""
    return not active and (
        not freed
        or constraints is None
        or max(freed.values()) <= epoch - constraints.min_dormant_epochs
    )


class Occupancy(NamedTuple):
    """Why seeds of a layer may be out of the question, for a message.

    Attributes:
        reserved: Chosen, but neither committed nor answered yet.
        busy: Committed and not freed yet.
        freed: Seed to the epoch at which its last activity ended.
    """

    reserved: Set[int]
    busy: Set[int]
    freed: Mapping[int, int]


def refusal(
    layer_name: str,
    seeds: Sequence[int],
    occupancy: Occupancy,
    epoch: int,
    constraints: SelectionConstraints | None,
) -> str:
    """Say why no seed of a layer is viable, seed by seed, and what would help."""
    why, ways_out = [], []
    active = len(occupancy.reserved | occupancy.busy)
    if constraints is not None and active >= constraints.max_concurrent_seeds:
        why.append(f"{active} active, {constraints.max_concurrent_seeds} allowed at once")
        ways_out.append("raise constraints.max_concurrent_seeds")
    for seed in seeds:
        if seed in occupancy.reserved:
            why.append(f"seed {seed} is reserved")
        elif seed in occupancy.busy:
            why.append(f"seed {seed} is busy")
        elif constraints is not None and seed in occupancy.freed:
            end = occupancy.freed[seed] + constraints.min_dormant_epochs
            if end > epoch:
                why.append(f"seed {seed} cools down until epoch {end}")
                ways_out.append("wait for a cooldown to end")
    if active:
        ways_out.append("wait until an active seed is released or freed")
    return (
        f"layer {layer_name!r} has no viable seed at epoch {epoch}: {'; '.join(why)}. "
        f"{' or '.join(dict.fromkeys(ways_out)).capitalize()}"
    )
