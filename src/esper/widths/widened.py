"""Modules with one more unit at chosen widths, for a while."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.widths.found import Width
from esper.widths.members import Member, Role, counts, growing, join
from esper.widths.noise import normal, source

Values = dict[tuple[nn.Module, str], Any]
"""Parameters, buffers or attributes of modules."""

Leaf = tuple[str, Member, str]
"""Name of a width, one of its members, and the name of a parameter of that."""


_LOUD = 100.0
"""Size of a unit that nothing reads, relative to the others: who reads it all the same is heard."""


@final
class Widened:
    """Tensors of a model with one more unit at chosen widths.

    Args:
        modules: Modules of the model by name.
        widths: Those that grow.
        draw: Number of the draw of new weights. An odd one has the units of the one before turned
            round: what is silent behind a ReLU in one is not in the other.
        read: Whether the consumers read the new units; if not, their new columns are zero.

    Attributes:
        leaves: New weights, which require gradients.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        widths: Sequence[Width],
        *,
        draw: int,
        read: bool,
    ) -> None:
        self.leaves: dict[Leaf, Tensor] = {}
        self._new: Values = {}
        members = [(width, member) for width in widths for member in width.members]
        # Columns last: those of a layer that gives units too are as long as its rows are then.
        for width, member in sorted(members, key=lambda pair: pair[1].role == "consumer"):
            module = modules[member.name]
            for name, count in counts(module, member).items():
                self._new[module, name] = count
            for name, dim in growing(module, member.role):
                old = self._new.get((module, name), _held(module, name)[name])
                shape = _shape(old, dim, member, 1)
                if isinstance(module, _BatchNorm):
                    piece = old.detach().mean().expand(shape).clone()
                else:
                    size = _size(member.role, draw, read=read) * spread(old)
                    key = zlib.crc32(f"{draw // 2} {width.name} {member} {name}".encode())
                    piece = (normal(shape, source(key)) * size).to(old)
                if name in module._parameters:
                    self.leaves[width.name, member, name] = piece.requires_grad_()
                self._new[module, name] = join(old, piece.flatten(dim, dim + 2), dim, member)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put them where the model's own are, and those back on leaving."""
        with placed(self._new):
            yield


@contextmanager
def placed(values: Mapping[tuple[nn.Module, str], Any]) -> Iterator[None]:
    """Give modules other parameters, buffers or attributes, and put theirs back on leaving."""
    kept = exchanged(values)
    try:
        yield
    finally:
        exchanged(kept)


def exchanged(values: Mapping[tuple[nn.Module, str], Any]) -> Values:
    """Give modules other parameters, buffers or attributes; those that they had before."""
    kept = {}
    for (module, name), value in values.items():
        held = _held(module, name)
        kept[module, name], held[name] = held[name], value
    return kept


def spread(tensor: Tensor) -> float:
    """Root mean square of a tensor's first elements; if they are zero, that of fresh weights."""
    found = float(tensor.detach().flatten()[:4096].float().square().mean().sqrt())
    return found or (0.1 if tensor.ndim < 2 else (len(tensor) / tensor.numel()) ** 0.5)


def _size(role: Role, draw: int, *, read: bool) -> float:
    """Size of new weights, relative to the module's own."""
    if role == "producer":
        return (-1.0) ** draw * (1.0 if read else _LOUD)
    return 1.0 if read or role == "norm" else 0.0


def _held(module: nn.Module, name: str) -> dict[str, Any]:
    """Dictionary of a module that has its parameter, buffer or attribute of this name."""
    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    return next((table for table in tables if name in table), vars(module))


def _shape(tensor: Tensor, dim: int, member: Member, units: int) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return (*shape[:dim], member.outer, units, member.inner, *shape[dim + 1 :])
