"""Sites that were found: what grows together, or why it cannot; prints as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.site import Kind, Site
from esper.widths.members import Member, Role

WIDTH = 80

_SHOWN = ("name", "kind", "units", "cost", "producers", "norms", "consumers", "refused")


@final
@dataclass(frozen=True, slots=True)
class Width:
    """A width between layers.

    Attributes:
        name: Name of the layer that gives the units, or of the first one called.
        units: How many there are.
        cost: Parameters that one more unit adds.
        members: Modules that grow with the units, each with the places that a unit takes in it.
        refused: Why it cannot grow; empty if it can.
    """

    name: str
    units: int
    cost: int
    members: tuple[Member, ...]
    refused: str = ""

    @property
    def kind(self) -> Kind:
        """``"width"``."""
        return "width"

    @property
    def heads(self) -> bool:
        """True if its units are heads of attention."""
        return any(member.role == "count" for member in self.members)

    @property
    def site(self) -> Site:
        """The site as logs and checkpoints call it."""
        return Site(self.name, self.kind)

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers that give the units."""
        return self._named("producer")

    @property
    def norms(self) -> tuple[str, ...]:
        """Batch norms and depthwise convolutions, which have a channel for each unit."""
        return self._named("norm")

    @property
    def consumers(self) -> tuple[str, ...]:
        """Layers that read the units."""
        return self._named("consumer")

    def _named(self, role: Role) -> tuple[str, ...]:
        return tuple(member.name for member in self.members if member.role == role)


@final
@dataclass(frozen=True, slots=True)
class Sites(Sequence[Width]):
    """Widths of a model, in the order in which it computes them; ``print`` it, ``sites["fc1"]``.

    Attributes:
        widths: Those that can grow and those that were refused.
    """

    widths: tuple[Width, ...]

    @override
    def __getitem__(self, key: Any) -> Any:
        """Width by its name, by that of any layer that gives its units, or by index.

        Raises:
            ConfigError: if no width has this name.
        """
        if not isinstance(key, str):
            return self.widths[key]
        for width in self.widths:
            if key in (width.name, *width.producers):
                return width
        raise ConfigError(unknown_name("site", key, [width.name for width in self.widths]))

    @override
    def __len__(self) -> int:
        return len(self.widths)

    @override
    def __iter__(self) -> Iterator[Width]:
        return iter(self.widths)

    def to_json(self) -> list[dict[str, Any]]:
        """Widths as dictionaries of what the table shows."""
        return [{name: getattr(width, name) for name in _SHOWN} for width in self.widths]

    @override
    def __str__(self) -> str:
        wide = max([len("site"), *(len(width.name) for width in self.widths)])
        rows = [_row(width, wide) for width in self.widths]
        able = sum(not width.refused for width in self.widths)
        head = f"{'site':<{wide}} {'units':>6} {'cost':>7}  grows with"
        return "\n".join([head, *rows, f"{able} of {len(rows)} widths can grow"])


def _row(width: Width, wide: int) -> str:
    start = f"{width.name:<{wide}} {width.units:>6} {'-' if width.refused else width.cost:>7}  "
    roles: tuple[Role, ...] = ("producer", "norm", "consumer")
    steps = [[m for m in width.members if m.role == role] for role in roles]
    text = " > ".join(_listed(step) for step in (steps[0][1:], *steps[1:]) if step)
    if width.refused:
        text = f"no: {width.refused}"
    indent = " " * min(len(start), WIDTH // 2)
    return fill(text, WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)


def _listed(members: Sequence[Member]) -> str:
    """Names, with the places of a unit if there are several; of many the first and the last."""
    names = [m.name + (f" x {m.places}" if m.places > 1 else "") for m in members]
    if len(names) > 3:
        return f"{names[0]}, ..., {names[-1]} ({len(names)} layers)"
    return ", ".join(names)
