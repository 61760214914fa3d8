"""Trace: one pass of a model that follows units from layer to layer, on the side."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.passes.batches import tensors_in
from esper.widths.groups import Axis, Group, joined
from esper.widths.members import (
    Role,
    growing,
    heads_in,
    heads_said,
    is_layer,
    is_norm,
    multiplier,
    unit_axis,
)
from esper.widths.operations import Call, Tags, follow, taken_apart

_GROUPED = "has several numbers of heads, as of grouped queries"


@final
class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the units of a model's layers through its passes; several may be followed.

    Args:
        modules: Modules of the model by the name that messages call them.
        layers: Wrapped layers among them, whose hosts stand for them there.

    Attributes:
        axes: Axis of the units on each member's side, by role, in the order of the calls; for a
            consumer or a norm ``None`` where it read an axis that was not followed.
        read_outside: Members whose weights an operation outside them reads, with a sentence.
        eps: Spacing of numbers at 1 in the coarsest type that a pass computed with.
    """

    supports_higher_order_operators = True

    def __init__(
        self, modules: Mapping[str, nn.Module], layers: Iterable[KasminaLayer] = ()
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes: dict[Role, dict[nn.Module, Axis | None]] = {
            "producer": {}, "norm": {}, "consumer": {}, "count": {}
        }  # fmt: skip
        self.read_outside: dict[nn.Module, str] = {}
        self.eps = 0.0
        self._names = {module: name for name, module in modules.items()}
        self._layers = tuple(layers)
        self._weights = {
            _memory(p): module
            for module in self._names
            if is_layer(module) or is_norm(module)
            for p in module._parameters.values()
            if p is not None and p.numel()
        }
        self._tags: Any = WeakTensorKeyDictionary()
        self._entered: list[nn.Module] = []
        self._inside: nn.Module | None = None
        self._calls: Counter[nn.Module] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the passes that are made inside."""
        handles = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(self._enter))
            leave: Callable[..., None] = self._leave
            # Before the user's own hooks, whose operations are followed like all others.
            handles.append(
                module.register_forward_hook(
                    leave, prepend=True, with_kwargs=True, always_call=True
                )
            )
        for layer in self._layers:
            handles.append(layer.register_forward_hook(self._leave_layer, with_kwargs=True))
        self._calls.clear()
        try:
            with self:
                yield
        finally:
            self._entered.clear()
            self._inside = None
            for handle in handles:
                handle.remove()

    def refuse_tensors(self, tensors: Any, why: str) -> None:
        """Refuse the units of these tensors, however nested they are."""
        for tensor in tensors_in(tensors):
            for axis in self._tags_of(tensor).values():
                axis.refuse(why)

    def refuse(self, module: nn.Module, why: str) -> None:
        """Refuse the units that a module gives, reads or normalises."""
        if module in self.read_outside and is_layer(module):  # it may never have been called
            dim = growing(module, "producer")[0][1]
            axis = Axis(Group(module._parameters["weight"].shape[dim]))  # type: ignore[union-attr]
            self.axes["producer"].setdefault(module, axis)
        for held in self.axes.values():
            found = held.get(module)
            if found is not None:
                found.refuse(why)

    # --- modules ----------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any) -> None:
        del args
        if not self._entered:  # a model may be called several times for one loss
            self._calls.clear()
        self._entered.append(module)
        if self._inside is None and (is_layer(module) or is_norm(module)):
            self._inside = module

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
        if module not in self._entered:  # hooks on a width are on the layer that it is inside
            return
        while self._entered.pop() is not module:
            pass
        followed = self._inside is module
        if followed:
            self._inside = None
        x = next(tensors_in((args, kwargs)), None)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return
        if followed:
            self._calls[module] += 1
            self._tags[y] = self._pass_module(module, x, y)
        elif isinstance(module, nn.Linear | _ConvNd):
            odd = Axis(Group(y.shape[unit_axis(module, y)]))
            self.axes["producer"].setdefault(module, odd)
            grouped = isinstance(module, _ConvNd) and module.groups > 1
            way = "is a grouped convolution" if grouped else "computes its weights or output anew"
            odd.refuse(f"{self._names[module]!r} {way}")

    def _leave_layer(self, layer: KasminaLayer, args: Any, kwargs: Any, y: Any) -> None:
        name = self._names[layer.host]
        subject = repr(name) if name else "the whole model"
        why = f"{subject} is wrapped, and a kernel beside it would not grow with it"
        self.refuse_tensors((args, kwargs, y), why)

    def _pass_module(self, module: nn.Module, x: Tensor, y: Tensor) -> Tags:
        tags, dim = self._tags_of(x), unit_axis(module, x)
        axis, name = tags.get(dim), self._names[module]
        kept = {place: other for place, other in tags.items() if place < dim}
        for place, other in tags.items():
            if place > dim or (place < dim and isinstance(module, _BatchNorm)):
                other.refuse(f"{name!r} reads all its units at once")
        if is_layer(module):
            kept[dim] = self.axes["producer"].get(module) or Axis(Group(y.shape[dim]))
            self._record("consumer", module, axis)
            self._record("producer", module, kept[dim])
        elif axis is None:
            self._record("norm", module, None)
        else:
            kept[dim] = self._pass_norm(module, axis)
        if self._calls[module] > 1:
            self.refuse(module, f"{name!r} is called several times in one pass")
        return kept

    def _pass_norm(self, module: nn.Module, axis: Axis) -> Axis:
        whole = axis.resolved()
        if not isinstance(module, _ConvNd):
            self._record("norm", module, axis)
            return axis
        if whole.places > 1:
            axis.refuse(f"{self._names[module]!r} convolves each of a unit's places by itself")
        channels = Axis(axis.group, axis.outer, axis.inner * multiplier(module))
        self._record("norm", module, channels)
        return channels

    def _record(self, role: Role, module: nn.Module, axis: Axis | None) -> None:
        before = self.axes[role].setdefault(module, axis)
        if before is not axis and not (before and axis and joined(before, axis)):
            for found in (before, axis):
                if found is not None:
                    why = _GROUPED if role == "count" else "reads other units too"
                    found.refuse(f"{self._subject(module)} {why}")

    # --- operations -------------------------------------------------------------------------------

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            # Accelerators multiply float32 with the mantissa of TF32.
            eps = torch.finfo(result.dtype).eps
            self.eps = max(self.eps, eps, 0.0 if result.device.type == "cpu" else 2.0**-10)
        if self._inside is None:
            tensors = list(tensors_in((args, kwargs or {})))
            self._note_weights(tensors)
            tags = [self._tags_of(tensor) for tensor in tensors]
            if any(tags):
                given = _given(func, args, kwargs or {})
                self._follow(func, given, tensors, tags, list(tensors_in(result)))
        return result

    def _follow(
        self, func: Any, given: dict[str, Any], tensors: list[Tensor], tags: list[Tags], outs: Any
    ) -> None:
        name = func.name().partition("::")[2].partition(".")[0]
        pointwise = torch.Tag.pointwise in getattr(func, "tags", ())
        call = Call(name, given, tensors, tags, outs, pointwise)
        found = follow(call)
        if isinstance(found, str) and self._take_apart(call):
            found = follow(call)
        blank = [tensor for tensor, held in zip(tensors, tags, strict=True) if not held]
        if any(out is tensor for out in outs for tensor in blank):
            found = "writes its units into another tensor"
        if isinstance(found, str):
            name = name.strip("_")
            where = self._where()
            why = f"{name} in {where} {found}" if self._entered else f"{where} reads it ({name})"
            for axis in (axis for held in tags for axis in held.values()):
                axis.refuse(why)
            return
        for out, held in zip(outs, found, strict=True):
            self._tags[out] = held

    def _take_apart(self, call: Call) -> bool:
        """Let units be heads where a view takes them apart, and a module says into how many."""
        for module in reversed(self._entered):
            for dim, axis in call.tags[0].items():
                for heads in heads_in(module, axis.resolved().group.units):
                    found = taken_apart(call, dim, heads)
                    if found is not None:
                        self._record("count", module, found)
                        if heads_said(module) - {heads}:
                            found.refuse(f"{self._subject(module)} {_GROUPED}")
                        return True
        return False

    def _where(self) -> str:
        """Module that is running, as sentences call it."""
        return self._subject(self._entered[-1]) if self._entered else "the loss"

    def _subject(self, module: nn.Module) -> str:
        name = self._names[module]
        return repr(name) if name else "the model"

    def _note_weights(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            module = self._weights.get(_memory(tensor))
            if module is not None and module not in self.read_outside:
                read = f"reads the weights of {self._names[module]!r} directly"
                self.read_outside[module] = f"{self._where()} {read}"

    def _tags_of(self, tensor: Tensor) -> Tags:
        return self._tags.get(tensor, {})  # type: ignore[no-any-return]


def _memory(tensor: Tensor) -> int:
    """Address of the memory of a tensor; 0 if it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _given(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments of an operation by name, its defaults included."""
    given = dict(kwargs)
    for index, argument in enumerate(getattr(getattr(func, "_schema", None), "arguments", ())):
        if index < len(args):
            given[argument.name] = args[index]
        elif argument.has_default_value():
            given.setdefault(argument.name, argument.default_value)
    return given
