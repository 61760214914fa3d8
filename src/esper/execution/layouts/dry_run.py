"""Dry runs: calls of the wrapped layers in a pass of the model, on a batch and on a smaller one."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.layouts.examples import Shape, chosen, shape_of
from esper.execution.passes.batches import version_of
from esper.execution.passes.isolation import LossFn
from esper.execution.side_effect_free import (
    freeze_statistics,
    side_effect_free,
    training_like_mode,
)

_CHANNELS = (
    _ConvNd,
    _NormBase,
    nn.GroupNorm,
    _MaxPoolNd,
    _AvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AdaptiveAvgPoolNd,
    nn.Upsample,
    nn.PixelShuffle,
    nn.Dropout1d,
    nn.Dropout2d,
)
_LAST = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.Embedding,
)


@final
@dataclass(slots=True)
class Call:
    """First call of a layer in a pass, and the shapes of all its calls.

    Attributes:
        x: Copy of the input, as the host found it.
        further: Arguments behind the input, by position and by name.
        y: Output.
        version: Version of the input's memory when the host was entered last.
        written: True if the host wrote into its input.
        shapes: Shapes of input and output of every call.
        single: The same in a pass on one example, if there was one.
        training: Shapes of input of every call in training, on the whole batch and on this one.
        inside: Axis of the features by modules of known type in the host that share its shapes.
        beside: The same by the nearest modules before and behind it.
        examples: Axis of the examples, by whose losses depend on what; ``None`` if not known.
    """

    x: Any
    further: tuple[Sequence[Any], Mapping[str, Any]]
    y: Any = None
    version: int = 0
    written: bool = False
    shapes: list[tuple[Shape, Shape]] = field(default_factory=list)
    single: list[tuple[Shape, Shape]] = field(default_factory=list)
    training: list[tuple[Shape, Shape]] = field(default_factory=list)
    inside: set[int] = field(default_factory=set)
    beside: set[int] = field(default_factory=set)
    examples: int | None = None


@final
@dataclass(frozen=True, slots=True)
class _Typed:
    """Call of a module whose type tells the axis of its features."""

    axis: int
    x: Shape
    y: Shape


def told_by_type(module: nn.Module) -> int | None:
    """Axis of the features of a module of PyTorch's own: 1, or -1 for the last; else ``None``."""
    # A subclass with a forward of its own, as timm's LayerNorm2d, may read another axis.
    home = getattr(getattr(type(module), "forward", None), "__module__", "")
    if not str(home).startswith("torch.nn"):  # a generated one, as torch.fx's: None
        return None
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return None
    if isinstance(module, _CHANNELS):
        return 1
    return -1 if isinstance(module, _LAST) else None


def watch(
    model: nn.Module,
    layers: Mapping[str, KasminaLayer],
    loss_fn: LossFn,
    batch: Any,
    *,
    training: bool = False,
) -> tuple[dict[str, Call], Any]:
    """Calls of the layers in one pass, in evaluation mode or as in training; losses, unmasked."""
    watched = _Watch()
    handles = []
    for name, layer in layers.items():
        before, after = partial(watched.enter, name=name), partial(watched.leave, name=name)
        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))
    for module in model.modules():
        axis = told_by_type(module)
        if axis is not None:
            handles.append(module.register_forward_hook(partial(watched.note, axis=axis)))
    try:
        mode = training_like_mode(model) if training else False
        with side_effect_free(model, training=mode), torch.no_grad():
            if training:
                freeze_statistics(model)
            losses = loss_fn(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return watched.calls(), _unmasked(losses)


def watch_resized(
    model: nn.Module, layers: Mapping[str, KasminaLayer], loss_fn: LossFn, batch: Any, losses: Any
) -> dict[str, Call] | None:
    """Calls of the layers in a pass with one example fewer; ``None`` if no such batch can be made.

    ``losses`` are those of the whole batch. Of a batch of one example, a batch of two is made.
    Passes follow on a single example, which may squeeze an axis away, and as in training.
    """
    if not isinstance(losses, Tensor) or losses.ndim == 0 or len(losses) == 0:
        return None
    count = len(losses)
    keep = range(count - 1) if count > 1 else (0, 0)
    for last in (False, True):
        # Whatever is raised: the examples lie elsewhere, or the batch cannot be taken apart.
        with suppress(Exception):
            fewer = chosen(batch, count, keep, last=last)
            seen, found = watch(model, layers, loss_fn, fewer)
            if isinstance(found, Tensor) and found.ndim and len(found) == len(keep):
                _add_single(seen, model, layers, loss_fn, chosen(batch, count, (0,), last=last))
                _add_training(seen, model, layers, loss_fn, (batch, fewer))
                return seen
    return None


def _add_single(
    seen: Mapping[str, Call],
    model: nn.Module,
    layers: Mapping[str, KasminaLayer],
    loss_fn: LossFn,
    batch: Any,
) -> None:
    with suppress(Exception):
        calls, _ = watch(model, layers, loss_fn, batch)
        for name in seen.keys() & calls.keys():
            seen[name].single = calls[name].shapes


def _add_training(
    seen: Mapping[str, Call],
    model: nn.Module,
    layers: Mapping[str, KasminaLayer],
    loss_fn: LossFn,
    batches: tuple[Any, Any],
) -> None:
    with suppress(Exception):
        whole, fewer = (watch(model, layers, loss_fn, batch, training=True)[0] for batch in batches)
        for name in seen.keys() & whole.keys() & fewer.keys():
            pairs = zip(whole[name].shapes, fewer[name].shapes, strict=False)
            seen[name].training = [(x, fewer_x) for (x, _), (fewer_x, _) in pairs]


def trace_examples(
    model: nn.Module, calls: Mapping[KasminaLayer, Call], loss_fn: LossFn, batch: Any
) -> None:
    """Set ``examples`` of the calls: the axis along which the losses of two examples part.

    For batches that cannot be made smaller. The loss of one example depends on the layer's output
    at its own place alone.
    """
    roots: dict[KasminaLayer, Tensor] = {}

    def add_root(layer: KasminaLayer, args: Any, output: Tensor) -> Tensor:
        del args
        if layer in roots:
            return output
        roots[layer] = torch.zeros_like(output, requires_grad=True)
        return output + roots[layer]

    handles = [layer.register_forward_hook(add_root) for layer in calls]
    try:
        # Whatever is raised: nothing is known then, as before.
        with suppress(Exception), side_effect_free(model, training=False), torch.enable_grad():
            losses = _unmasked(loss_fn(model, batch))
            first, last = (
                torch.autograd.grad(
                    losses[index].sum(), list(roots.values()), retain_graph=True, allow_unused=True
                )
                for index in (0, len(losses) - 1)
            )
            for layer, one, other in zip(roots, first, last, strict=True):
                calls[layer].examples = _parting_axis(one, other)
    finally:
        for handle in handles:
            handle.remove()


def _parting_axis(one: Tensor | None, other: Tensor | None) -> int | None:
    """Axis along which no index has gradients of both; ``None`` if it is not the only one."""
    if one is None or other is None or not (one.any() and other.any()):
        return None
    parting = []
    for axis in range(one.ndim):
        here, there = (t.transpose(0, axis).flatten(1).any(dim=1) for t in (one, other))
        if not (here & there).any():
            parting.append(axis)
    return parting[0] if len(parting) == 1 else None


@final
class _Watch:
    """Hooks of one pass."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._typed: list[_Typed] = []
        self._spans: dict[str, list[int]] = {}

    def enter(self, layer: KasminaLayer, args: Any, kwargs: Any, *, name: str) -> None:
        x = layer.input_of(args, kwargs)
        if name not in self._calls:
            named = {key: value for key, value in kwargs.items() if value is not x}
            kept = x.clone() if isinstance(x, Tensor) else x
            self._calls[name] = Call(kept, (args[1:], named))
            self._spans[name] = [len(self._typed)]
        self._calls[name].version = _version(x)

    def leave(self, layer: KasminaLayer, args: Any, kwargs: Any, output: Any, *, name: str) -> None:
        call, x = self._calls[name], layer.input_of(args, kwargs)
        call.written |= _version(x) != call.version
        call.shapes.append((shape_of(x), shape_of(output)))
        if len(call.shapes) == 1:
            call.y = output
            self._spans[name].append(len(self._typed))

    def note(self, module: nn.Module, args: Any, output: Any, *, axis: int) -> None:
        del module
        y = output[0] if isinstance(output, tuple) and output else output
        self._typed.append(_Typed(axis, shape_of(args[0] if args else None), shape_of(y)))

    def calls(self) -> dict[str, Call]:
        """Calls by layer, each with what the modules of known type tell about its axes."""
        for name, (start, *ends) in self._spans.items():
            for end in ends:  # none if the call was left by an exception that the model caught
                self._vote(self._calls[name], start, end)
        return self._calls

    def _vote(self, call: Call, start: int, end: int) -> None:
        x, y = call.shapes[0]
        call.inside = {part.axis for part in self._typed[start:end] if part.x == x or part.y == y}
        before = [part.axis for part in self._typed[:start] if part.y == x]
        behind = [part.axis for part in self._typed[end:] if part.x == y]
        call.beside = {*before[-1:], *behind[:1]}


def _unmasked(losses: Any) -> Any:
    return losses[0] if isinstance(losses, tuple) and losses else losses


def _version(value: Any) -> int:
    return version_of(value) if isinstance(value, Tensor) else 0
