"""Occupancy: the one book of which seeds of a layer are reserved, busy or cooling down."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from esper.contracts.selection import (
    Decision,
    SelectionConstraints,
    decision_data,
    decision_from,
)
from esper.records.seed import SeedRecord


class Sifted(NamedTuple):
    """Seeds by what stands in their way.

    Attributes:
        viable: Nothing does.
        cooling: Only a cooldown, which ``fallback_to_zero`` may override.
    """

    viable: list[int]
    cooling: list[int]


@final
class Occupancy:
    """The seeds of one layer that are not simply free.

    A choice reserves a seed; `commit` makes it busy until `free`, from when on it cools down. A
    reservation also ends with `release`, or with the outcome of its decision: then the cooldown
    runs from the choice.

    Attributes:
        reserved: Seed to the decision that chose it, and its record.
        busy: Committed seeds, not freed yet.
        freed: Seed to the epoch at which its last activity ended.
        active: Reserved or busy seeds.

    Example:
        Seed 0 is busy, seed 1 was freed at epoch 4 and rests for 5 epochs:

        >>> book = Occupancy(busy=[0], freed={1: 4})
        >>> book.sift([0, 1, 2], 8, SelectionConstraints())
        Sifted(viable=[2], cooling=[1])
    """

    __slots__ = ("active", "busy", "freed", "reserved")

    def __init__(self, *, busy: Sequence[int] = (), freed: Mapping[int, int] | None = None) -> None:
        self.reserved: dict[int, tuple[Decision, SeedRecord]] = {}
        self.busy = set(busy)
        self.freed = dict(freed or {})
        self.active = set(busy)

    def reserve(self, decision: Decision, record: SeedRecord) -> None:
        """Reserve the seed of a decision."""
        self.reserved[decision.seed_idx] = (decision, record)
        self.active.add(decision.seed_idx)

    def settle(self) -> None:
        """End the reservations whose outcome has come."""
        for seed, (decision, record) in list(self.reserved.items()):
            if decision.decision_id not in record.open:
                del self.reserved[seed]
                self.active.discard(seed)
                self.freed[seed] = decision.epoch

    def commit(self, seed_idx: int) -> None:
        """A reserved seed is busy from now on."""
        del self.reserved[seed_idx]
        self.busy.add(seed_idx)

    def release(self, seed_idx: int) -> Decision:
        """A reserved seed is free at once, without a cooldown; the decision that is void."""
        decision, _ = self.reserved.pop(seed_idx)
        self.active.discard(seed_idx)
        return decision

    def free(self, seed_idx: int, epoch: int | None) -> None:
        """A busy seed cools down from ``epoch`` on; ``None`` for no cooldown."""
        self.busy.discard(seed_idx)
        self.active.discard(seed_idx)
        if epoch is not None:
            self.freed[seed_idx] = epoch

    def is_idle(self, epoch: int, constraints: SelectionConstraints | None) -> bool:
        """True if nothing stands in the way of any seed."""
        return not self.active and (
            not self.freed
            or constraints is None
            or max(self.freed.values()) <= epoch - constraints.min_dormant_epochs
        )

    def sift(
        self, seeds: Sequence[int], epoch: int, constraints: SelectionConstraints | None
    ) -> Sifted:
        """Sort out which of ``seeds`` may be chosen; without constraints all but active ones."""
        if self.is_idle(epoch, constraints):
            return Sifted(list(seeds), [])
        if constraints is None:
            return Sifted([seed for seed in seeds if seed not in self.active], [])
        if len(self.active) >= constraints.max_concurrent_seeds:
            return Sifted([], [])
        latest = epoch - constraints.min_dormant_epochs
        viable: list[int] = []
        cooling: list[int] = []
        for seed in seeds:
            if seed not in self.active:
                (viable if self.freed.get(seed, latest) <= latest else cooling).append(seed)
        return Sifted(viable, cooling)

    def refusal(
        self,
        layer_name: str,
        seeds: Sequence[int],
        epoch: int,
        constraints: SelectionConstraints | None,
    ) -> str:
        """Why no seed is viable, seed by seed, and what would help."""
        why, ways_out = [], []
        active = len(self.active)
        if constraints is not None and active >= constraints.max_concurrent_seeds:
            why.append(f"{active} active, {constraints.max_concurrent_seeds} allowed at once")
            ways_out.append("raise constraints.max_concurrent_seeds")
        for seed in seeds:
            if seed in self.reserved:
                why.append(f"seed {seed} is reserved")
            elif seed in self.busy:
                why.append(f"seed {seed} is busy")
            elif constraints is not None and seed in self.freed:
                end = self.freed[seed] + constraints.min_dormant_epochs
                if end > epoch:
                    why.append(f"seed {seed} cools down until epoch {end}")
                    ways_out.append("wait for a cooldown to end")
        if active:
            ways_out.append("wait until an active seed is released or freed")
        return (
            f"layer {layer_name!r} has no viable seed at epoch {epoch}: {'; '.join(why)}. "
            f"{' or '.join(dict.fromkeys(ways_out)).capitalize()}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The book as JSON data."""
        return {
            "reserved": [decision_data(decision) for decision, _ in self.reserved.values()],
            "busy": sorted(self.busy),
            "freed": {str(seed): epoch for seed, epoch in self.freed.items()},
        }


def occupancy_from(state: Mapping[str, Any]) -> tuple[Occupancy, list[Decision]]:
    """The book that `Occupancy.state_dict` wrote, and the decisions to reserve anew."""
    freed = {int(seed): epoch for seed, epoch in state["freed"].items()}
    book = Occupancy(busy=state["busy"], freed=freed)
    return book, [decision_from(data) for data in state["reserved"]]
