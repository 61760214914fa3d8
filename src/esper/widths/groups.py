"""Groups of units: axes of tensors that must grow together."""

from dataclasses import dataclass, replace
from typing import Self, final


@final
class Group:
    """Units that grow together; one of a forest whose roots are the widths of a model.

    Two groups become one when an operation joins their axes. A group whose axis is cut in ``n``
    equal parts becomes ``n`` times a group of ``1 / n`` of its units, as in a fused gate and up.
    One that is taken apart into heads becomes a group of heads, each of many places.

    Attributes:
        units: How many there are.
        refused: Why they cannot grow; empty if they can, as far as is known.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self.refused = ""
        self._parent: Group | None = None
        self._repeat = self._within = 1

    def root(self) -> tuple["Group", int, int]:
        """Root of the group, how often the group repeats it, and its own units in each of those."""
        if self._parent is None:
            return self, 1, 1
        root, repeat, within = self._parent.root()
        return root, repeat * self._repeat, within * self._within

    def put_under(self, parent: "Group", *, repeat: int = 1, within: int = 1) -> None:
        """Make a root part of another; the first reason for a refusal stays."""
        parent.refused = parent.refused or self.refused
        self._parent, self._repeat, self._within = parent, repeat, within


@final
@dataclass(frozen=True, slots=True)
class Axis:
    """Axis of a tensor that holds units, at ``(outer index * units + unit) * inner + inner index``.

    Attributes:
        group: The units.
        outer: Repetitions of all units one after another, as behind a flattened (B, T, F).
        inner: Consecutive places of each unit, as behind a flattened (B, C, H, W).
    """

    group: Group
    outer: int = 1
    inner: int = 1

    @property
    def places(self) -> int:
        """Places that one unit takes."""
        return self.outer * self.inner

    def resolved(self) -> Self:
        """The same axis in terms of its group's root."""
        root, repeat, within = self.group.root()
        return replace(self, group=root, outer=self.outer * repeat, inner=self.inner * within)

    def refuse(self, why: str) -> None:
        """Let the units never grow; the first reason stays."""
        root = self.group.root()[0]
        root.refused = root.refused or why


def joined(first: Axis, second: Axis) -> bool:
    """Make the units of two axes one group; false if a unit has other places on one of them."""
    one, other = first.resolved(), second.resolved()
    if (one.outer, one.inner, one.group.units) != (other.outer, other.inner, other.group.units):
        return False
    if one.group is not other.group:
        other.group.put_under(one.group)
    return True


def part(axis: Axis, count: int) -> Axis | None:
    """Axis of each of ``count`` equal parts of this one; ``None`` if they cut through a unit.

    Example:
        >>> fused = Axis(Group(8))
        >>> gate = part(fused, 2)
        >>> gate.group.units, gate.outer, fused.resolved().outer
        (4, 1, 2)
    """
    whole = axis.resolved()
    if whole.outer % count == 0:
        return replace(whole, outer=whole.outer // count)
    if whole.outer > 1 or whole.group.units % count:
        return None
    smaller = Group(whole.group.units // count)
    whole.group.put_under(smaller, repeat=count)
    return replace(whole, group=smaller)
