"""Hooks with which the modules of a width compute with more units than they have."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.blueprints.units import UnitsKernel
from esper.widths.members import (
    Member,
    counts,
    first_units,
    join,
    last_units,
    parts_of,
    tensor_of,
    unit_axis,
)
from esper.widths.widened import Values, exchanged


@final
class Missing(nn.Module):
    """Stands for a member in a copy of a part of the model that does not have it."""


class Acting(NamedTuple):
    """Kernel that has a part in the output, and the weight of its columns; ``None`` for one."""

    kernel: UnitsKernel
    alpha: Tensor | None


@final
class Hooks:
    """Hooks on the modules of a width, which are there only while a kernel acts.

    Before a module runs, its tensors are replaced by longer ones, and put back afterwards.

    Args:
        members: Modules that grow with the units, and how.
        cut: Modules that have some of those inside, and not all. A deep copy of such a part has no
            copies of the others.
    """

    def __init__(
        self, members: Sequence[tuple[Member, nn.Module]], cut: Sequence[nn.Module] = ()
    ) -> None:
        self.members = tuple(members)
        self._cut = tuple(cut)
        self._seen: list[tuple[Tensor, Tensor, float]] = []
        self._acting: list[Acting] = []
        self._isolated = False
        self._entered: list[tuple[nn.Module, Values, Values]] = []

    def copied_part(self, memo: dict[int, Any]) -> nn.Module | None:
        """The part that is being copied, of those that do not have all members inside."""
        root = next(iter(memo), 0)  # what is copied is the first in its memo
        return next((part for part in self._cut if id(part) == root), None)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hooks":
        if (part := self.copied_part(memo)) is not None:
            for one in {one for _, one in self.members}.union(self._cut) - set(part.modules()):
                memo[id(one)] = Missing()
        twin = memo[id(self)] = Hooks.__new__(Hooks)
        vars(twin).update(deepcopy(vars(self) | {"_entered": [], "_seen": []}, memo))
        return twin

    def compute_with(self, acting: Iterable[Acting], *, isolated: bool) -> None:
        """Compute with these kernels from now on, in the order of their units.

        Args:
            acting: The kernels.
            isolated: True in a shadow pass: nothing is recorded before the units, and the
                statistics of new channels are those of the batch.
        """
        self._acting, self._isolated = list(acting), isolated
        if isolated:
            self._seen.clear()
        for module in {module: None for _, module in self.members}:
            there = self._enter in module._forward_pre_hooks.values()
            if self._acting and not there:
                # The last to enter is the first to leave, where widths share a module.
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave, prepend=True, always_call=True)
            elif there and not self._acting:
                _remove(module._forward_pre_hooks, self._enter)
                for key in _remove(module._forward_hooks, self._leave):
                    del module._forward_hooks_always_called[key]

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._isolated and module is self.members[0][1]:
            # The shadow pass arrives under no_grad, and everything before this is constant.
            torch.set_grad_enabled(True)
        values = self._longer(module, args)
        self._entered.append((module, values, exchanged(values)))

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if not self._entered or self._entered[-1][0] is not module:
            return  # it failed before it was entered
        _, values, kept = self._entered.pop()
        exchanged(kept)
        if module.training and not self._isolated:
            self._write_back(module, values)

    def _longer(self, module: nn.Module, args: tuple[Any, ...]) -> Values:
        """Tensors and counts of a module with all the units."""
        values: Values = {}
        isolated = self._acting[-1].kernel if self._isolated else None
        for part in parts_of(self.members):
            if part.module is not module:
                continue
            whole = values.get((module, part.tensor), tensor_of(module, part.tensor))
            for kernel, alpha in self._acting:
                piece = tensor_of(kernel.get_submodule(part.key), part.tensor)
                if alpha is not None and part.member.role == "consumer":
                    piece = alpha * piece
                if kernel is isolated and part.tensor.startswith("running_"):
                    of_batch = _of_batch(module, part.member, part.tensor, args[0], kernel.units)
                    if of_batch is not None:
                        self._seen.append((piece, of_batch, getattr(module, "momentum", 0) or 0.1))
                        piece = of_batch
                whole = join(whole, piece.to(whole.dtype), part.dim, part.member)
            values[module, part.tensor] = whole
        units = sum(kernel.units for kernel, _ in self._acting)
        for member, one in self.members:
            if one is module:
                for name, count in counts(module, member, units).items():
                    values[module, name] = count
        return values

    def learn_statistics(self) -> None:
        """Let a kernel's channels have the finite statistics of the last shadow pass, in part."""
        for own, of_batch, momentum in self._seen:
            seen = of_batch.to(own.dtype)
            own.lerp_(seen.where(seen.isfinite(), own), momentum)
        self._seen.clear()

    def _write_back(self, module: nn.Module, values: Values) -> None:
        """Give statistics that a pass in training has moved to whom they belong."""
        with torch.no_grad():
            for part in parts_of(self.members):
                if part.module is module and part.tensor.startswith("running_"):
                    whole, host = values[module, part.tensor], tensor_of(module, part.tensor)
                    left = sum(kernel.units for kernel, _ in self._acting)
                    every = len(whole) // part.member.places
                    host.copy_(first_units(whole, every - left, part.dim, part.member))
                    for kernel, _ in self._acting:
                        rest = last_units(whole, left, part.dim, part.member)
                        own = tensor_of(kernel.get_submodule(part.key), part.tensor)
                        own.copy_(first_units(rest, kernel.units, part.dim, part.member))
                        left -= kernel.units


def _remove(hooks: dict[int, Any], hook: Any) -> list[int]:
    keys = [key for key, found in hooks.items() if found == hook]
    for key in keys:
        del hooks[key]
    return keys


def _of_batch(module: nn.Module, member: Member, name: str, x: Tensor, units: int) -> Tensor | None:
    """Mean or variance of the new channels that a batch norm reads; one value has none."""
    assert isinstance(module, _BatchNorm)
    axis = unit_axis(module, x)
    new = last_units(x.detach(), units, axis, member)
    axes = [i for i in range(x.ndim) if i != axis]
    if x.numel() == x.shape[axis]:
        return None
    return new.mean(axes) if name == "running_mean" else new.var(axes)
