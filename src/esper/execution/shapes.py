"""Specifications of the wrapped layers, observed on real data.

One pass tells the shapes; a second one, with one example fewer, which axis has the examples;
``esper.execution.layouts.layout`` which axis has the features, and what the layer mixes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from esper.blueprints import geometry
from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import FAULTS
from esper.execution.layouts.dry_run import Call, told_by_type, trace_examples, watch, watch_resized
from esper.execution.layouts.examples import Shape, chosen
from esper.execution.layouts.layout import (
    batch_axis,
    confirmed,
    feature_axis,
    reads_earlier,
    reads_later,
)
from esper.execution.passes.isolation import LossFn
from esper.execution.surgery import refit_default_seeds


def observe_shapes(
    model: nn.Module, layers: Mapping[str, KasminaLayer], *, loss_fn: LossFn, batch: Any
) -> dict[str, LayerSpec]:
    """Run the model in evaluation mode, and specify each wrapped layer.

    ``spec`` and ``mutates_input`` of every layer are set, and its default seeds if they do not fit;
    the specifications are returned by name.

    Raises:
        KernelError: if the model fails on the batch, a layer is not used, does not map a tensor of
            real numbers to a tensor, or nothing tells its axes apart.
        ConfigError: if the layout that the user gave a layer is not what was observed.
    """
    try:
        spare = chosen(batch, -1, ())  # loss_fn may take the batch apart
        seen, losses = watch(model, layers, loss_fn, batch)
    except FAULTS as error:
        raise KernelError(
            f"the model fails on a batch of the holdout data: {error}. Nothing was changed; "
            "loss_fn(model, batch) must run on every batch that iterating over the holdout gives"
        ) from error
    calls = {name: _checked(name, seen.get(name)) for name in layers}
    resized: Mapping[str, Call] = {}
    if any(
        layers[n].stated_layout or len(x) > 2 for n, call in calls.items() for x, _ in call.shapes
    ):
        resized = watch_resized(model, layers, loss_fn, spare, losses) or {}
        if not resized:
            by_layer = {layers[name]: call for name, call in calls.items()}
            trace_examples(model, by_layer, loss_fn, spare)
    specs = {
        name: _spec(layer, name, calls[name], resized.get(name)) for name, layer in layers.items()
    }
    for name, layer in layers.items():
        layer.spec = specs[name]
        refit_default_seeds(layer, specs[name])
        layer.mutates_input |= calls[name].written
    return specs


def _checked(name: str, call: Call | None) -> Call:
    if call is None:
        raise KernelError(
            f"layer {name!r} is never called in forward, so it cannot grow; wrap one that is"
        )
    x, y = call.x, call.y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise KernelError(
            f"layer {name!r} maps {type(x).__name__} to {type(y).__name__}; a layer that grows "
            "maps a tensor to a tensor; wrap a layer inside it, or one beside it"
        )
    if not (x.is_floating_point() and y.is_floating_point()):
        raise KernelError(
            f"layer {name!r} maps {x.dtype} to {y.dtype}; kernels compute with real numbers, so "
            "wrap a layer that reads and writes them, as the one behind an embedding"
        )
    return call


def _spec(layer: KasminaLayer, name: str, call: Call, resized: Call | None) -> LayerSpec:
    (x, y), host = call.shapes[0], layer.host
    if len(x) != len(y) or len(x) < 2 or (isinstance(host, _ConvNd) and not _batched(host, x)):
        raise _no_kernel(name, x, y)
    letters, doubt = _letters(layer, name, call, resized)
    feature = next(i for i, letter in enumerate(letters) if letter in "FC")
    spaces = _spaces(letters)
    same = all(x[i] == y[i] for i in range(len(x)) if i != feature)
    kind = _kind(host, letters, same=same)
    if not same and (not kind.startswith("conv") or x[letters.index("B")] != y[letters.index("B")]):
        raise _no_kernel(name, x, y)
    spec = LayerSpec(
        kind=kind,
        in_size=x[feature],
        out_size=y[feature],
        layer_type=type(host).__name__,
        doubt=doubt,
    )
    if letters != spec.axes:
        spec = replace(spec, layout=letters)
    if kind.startswith("conv") or _mixes_space(layer, letters, call):
        extents = (tuple(shape[i] for i in spaces) for shape in (x, y))
        spec = replace(spec, in_extent=next(extents), out_extent=next(extents))
    if kind == "conv1d":
        spec = replace(spec, causal=_is_causal(layer, letters, call))
    if not kind.startswith("conv"):
        return spec
    told = replace(spec, **_geometry(host))
    # A subclass that pads by itself has another geometry than its attributes say.
    return spec if geometry.misfit(told) and told_by_type(host) is None else told


def _letters(layer: KasminaLayer, name: str, call: Call, resized: Call | None) -> tuple[str, str]:
    """Axes of the layer's input, and why kernels must not mix them, if they must not."""
    host, rank = layer.host, call.x.ndim
    if layer.stated_layout:
        return confirmed(layer.stated_layout, host, call, resized, name=name), ""
    if rank == 2 and len({len(x) for x, _ in call.shapes}) == 1:
        return "BF", ""
    batch, doubt = batch_axis(host, call, resized)
    feature = feature_axis(host, call, batch, name=name)
    letters = ["N"] * rank
    letters[feature] = "F"
    if batch is None or batch == feature:
        way_out = f"say so, as esper.wrap(..., layout={{{name!r}: 'TBF'}})"
        return "".join(letters), f"{doubt}; if it is, {way_out}"
    letters[batch] = "B"
    spaces = _spaces(letters)
    if len(spaces) == 2 or (spaces and feature < spaces[0]):
        letters[feature] = "C"
    for axis, letter in zip(spaces, _letters_of_space(host, call, feature, spaces), strict=False):
        letters[axis] = letter
    return "".join(letters), ""


def _letters_of_space(host: nn.Module, call: Call, feature: int, spaces: list[int]) -> str:
    if len(spaces) != 1:
        return "HW" if len(spaces) == 2 else ""
    (axis,) = spaces
    free = feature < axis or (told_by_type(host) is None and reads_later(host, call, axis))
    return "L" if free else "T"


def _spaces(letters: str | list[str]) -> list[int]:
    return [axis for axis, letter in enumerate(letters) if letter not in "BFC"]


def _kind(host: nn.Module, letters: str, *, same: bool) -> str:
    spaces, feature = _spaces(letters), max(letters.find("F"), letters.find("C"))
    if "B" not in letters or not 1 <= len(spaces) <= 2:
        return "features"
    if told_by_type(host) == 1 or feature < spaces[0] or not same:
        return f"conv{len(spaces)}d"
    return "sequence" if len(spaces) == 1 else "features"


def _mixes_space(layer: KasminaLayer, letters: str, call: Call) -> bool:
    """True if convolutions over the axes beside the features may be added to the layer."""
    spaces = _spaces(letters)
    if "B" not in letters or not 1 <= len(spaces) <= 2:
        return False
    if layer.stated_layout or len(spaces) == 1:
        return {letters[axis] for axis in spaces} in ({"L"}, {"H", "W"})
    typed = told_by_type(layer.host) is not None
    return not typed and all(reads_later(layer.host, call, axis) for axis in spaces)


def _is_causal(layer: KasminaLayer, letters: str, call: Call) -> bool:
    (axis,) = _spaces(letters)
    if layer.stated_layout or told_by_type(layer.host) is not None:
        return letters[axis] == "T"
    return reads_earlier(layer.host, call, axis) and not reads_later(layer.host, call, axis)


def _batched(host: _ConvNd, x: Shape) -> bool:
    return len(x) == len(host.kernel_size) + 2


def _no_kernel(name: str, x: Shape, y: Shape) -> KernelError:
    return KernelError(
        f"layer {name!r} maps {x} to {y}; kernels exist for (B, F), (B, T, F), (B, C, L) and "
        "(B, C, H, W), with their axes in any order, and for layers that change the features alone"
    )


def _geometry(host: nn.Module) -> dict[str, Any]:
    """Geometry of a host that is itself a convolution, as fields of ``LayerSpec``."""
    if not isinstance(host, nn.Conv1d | nn.Conv2d):
        return {}
    before: tuple[int, ...] = (0,) * len(host.stride)
    after: tuple[int, ...] = ()
    if not isinstance(host.padding, str):
        before = host.padding
    elif host.padding == "same":
        around = [d * (k - 1) for d, k in zip(host.dilation, host.kernel_size, strict=True)]
        before = tuple(both // 2 for both in around)
        after = tuple(both - both // 2 for both in around)
    return {
        "kernel_size": host.kernel_size,
        "stride": host.stride,
        "padding": before,
        "dilation": host.dilation,
        "padding_after": () if after == before else after,
        "padding_mode": host.padding_mode,
        "groups": host.groups,
    }
