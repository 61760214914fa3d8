"""Specifications of the wrapped layers, observed on real data.

One pass tells the shapes; a second one, with one example fewer, which axis has the examples;
``esper.execution.layouts.layout`` which axis has the features, and what the layer mixes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.layouts.convolutions import with_geometry
from esper.execution.layouts.dry_run import Call, told_by_type, trace_examples, watch, watch_resized
from esper.execution.layouts.examples import Shape, chosen
from esper.execution.layouts.layout import (
    at_other_extents,
    batch_axis,
    confirmed,
    feature_axis,
    reads_earlier,
    reads_later,
    refused_axes,
)
from esper.execution.passes.isolation import LossFn
from esper.execution.passes.reach import refusing
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
    with refusing(batch):
        spare = chosen(batch, -1, ())  # loss_fn may take the batch apart
        seen, losses = watch(model, layers, loss_fn, batch)
    calls = {name: _checked(name, seen.get(name)) for name in layers}
    resized = watch_resized(model, layers, loss_fn, spare, losses) or {}
    if not resized and any(len(x) > 2 for call in calls.values() for x, _ in call.shapes):
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
    if len(x) in (3, 4) and len(y) == 2:
        return _summary(layer, name, call, resized)
    if len(x) != len(y) or len(x) < 2 or (isinstance(host, _ConvNd) and not _batched(host, x)):
        raise _no_kernel(name, x, y)
    letters, doubt = _letters(layer, name, call, resized)
    feature = next(i for i, letter in enumerate(letters) if letter in "FC")
    spaces = _spaces(letters)
    seen = _seen(host, call, resized, spaces)
    _require_sizes(name, seen, feature - len(x))
    same = all(_beside(a, feature - len(x)) == _beside(b, feature - len(x)) for a, b in seen)
    kind = _kind(host, letters, same=same)
    if not same and (not kind.startswith("conv") or x[letters.index("B")] != y[letters.index("B")]):
        raise _no_kernel(name, *next(p for p in seen if p[0] != p[1]))
    if not kind.startswith("conv") and isinstance(host, _ConvNd) and host.groups > 1:
        raise KernelError(
            f"layer {name!r} keeps {host.groups} groups of channels apart, and no kernel for a "
            f"{type(host).__name__} does; wrap a layer with one group, or another layer"
        )
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
    if not kind.startswith("conv"):
        return spec
    if spec.in_extent == spec.out_extent:
        spec = _with_order(spec, layer, letters, call)
    return with_geometry(spec, host, [[(a[i], b[i]) for a, b in seen] for i in spaces])


def _seen(
    host: nn.Module, call: Call, resized: Call | None, spaces: list[int]
) -> list[tuple[Shape, Shape]]:
    """Shapes read and written in every pass, and at other extents where the type tells nothing."""
    seen = _in_passes(call, resized)
    told = told_by_type(host)
    if told == -1 or (told is not None and isinstance(host, nn.Conv1d | nn.Conv2d)):
        return seen
    return [*seen, *(pair for axis in spaces for pair in at_other_extents(host, call, axis))]


def _in_passes(call: Call, resized: Call | None) -> list[tuple[Shape, Shape]]:
    return [*call.shapes, *(resized.shapes + resized.single if resized else ())]


def _require_sizes(name: str, seen: list[tuple[Shape, Shape]], feature: int) -> None:
    """Refuse a layer that is called with now these and now those numbers of features."""
    for read in (0, 1):
        sizes = sorted({pair[read][feature] for pair in seen})
        if len(sizes) > 1:
            raise KernelError(
                f"layer {name!r} {'writes' if read else 'reads'} {sizes[0]} features in one call "
                f"and {sizes[1]} in another, and a kernel has one number of them; give each place "
                "a module of its own"
            )


def _beside(shape: Shape, feature: int) -> Shape:
    """Shape without the features, whose axis is counted from the end."""
    return tuple(size for i, size in enumerate(shape) if i - len(shape) != feature)


def _summary(layer: KasminaLayer, name: str, call: Call, resized: Call | None) -> LayerSpec:
    """Specification of a layer that maps pictures or signals to features."""
    (x, y), host = call.shapes[0], layer.host
    batch, doubt = batch_axis(host, call, resized)
    if layer.stated_layout:
        letters = confirmed(layer.stated_layout, host, call, resized, name=name)
    elif batch is None:
        raise KernelError(
            f"layer {name!r} maps {x} to {y}, and {doubt}; wrap a layer whose input has the "
            "examples first"
        )
    else:
        # Behind a convolution the features may be anywhere: a head reads what was flattened.
        feature = 1 if 1 in call.inside else feature_axis(host, call, batch, name=name)
        spaces = iter("HW" if len(x) == 4 else "L")
        known = {batch: "B", feature: "C"}
        letters = "".join(known.get(axis) or next(spaces) for axis in range(len(x)))
    sizes = dict(zip(letters, x, strict=True))
    feature = max(letters.find("F"), letters.find("C"))
    spec = LayerSpec(
        kind=f"pool{len(x) - 2}d",
        in_size=x[feature],
        out_size=y[1],
        in_extent=tuple(x[i] for i in _spaces(letters)),
        layer_type=type(host).__name__,
        flat=len(refused_axes(host, call, letters.index("B"))) == len(x) - 1,
    )
    if letters[0] != "B" or sizes["B"] != y[0]:
        raise _no_kernel(name, x, y)
    return spec if letters == spec.axes else replace(spec, layout=letters)


def _letters(layer: KasminaLayer, name: str, call: Call, resized: Call | None) -> tuple[str, str]:
    """Axes of the layer's input, and why kernels must not mix them, if they must not."""
    host, rank = layer.host, call.x.ndim
    passes = [*_in_passes(call, resized), *(resized.training if resized else ())]
    ranks = sorted({len(x) for x, _ in passes})
    if len(ranks) > 1:
        return _letters_of_ranks(layer, name, call, ranks)
    if layer.stated_layout:
        return confirmed(layer.stated_layout, host, call, resized, name=name), ""
    batch, doubt = batch_axis(host, call, resized)
    if rank == 2 and batch in (0, None):
        return "BF", ""
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


def _letters_of_ranks(
    layer: KasminaLayer, name: str, call: Call, ranks: list[int]
) -> tuple[str, str]:
    """Axes of a layer whose input has now more and now fewer: kernels of the last one alone."""
    doubt = f"its input has {ranks[0]} axes in one pass and {ranks[-1]} in another"
    if layer.stated_layout or feature_axis(layer.host, call, None, name=name) != call.x.ndim - 1:
        raise KernelError(
            f"layer {name!r} cannot grow: {doubt}, as where a batch of one is squeezed; keep all "
            "axes, or wrap a layer with its features on the last axis and give it no layout"
        )
    return "N" * (call.x.ndim - 1) + "F", doubt


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


def _with_order(spec: LayerSpec, layer: KasminaLayer, letters: str, call: Call) -> LayerSpec:
    """Specification that says if kernels must not read what comes later along an axis."""
    spaces, host = _spaces(letters), layer.host
    if layer.stated_layout:
        return replace(spec, causal=spec.kind == "conv1d" and letters[spaces[0]] == "T")
    past = [axis for axis in spaces if not reads_later(host, call, axis)]
    if spec.kind == "conv1d":
        return replace(spec, causal=bool(past))
    if told_by_type(host) is None and any(reads_earlier(host, call, axis) for axis in past):
        doubt = (
            f"along axis {past[0]} of its input it reads the past alone, and kernels over two axes "
            f"do only where a T says so, as esper.wrap(..., layout={{{layer.name!r}: 'BCHT'}})"
        )
        return replace(spec, doubt=doubt)
    return spec


def _batched(host: _ConvNd, x: Shape) -> bool:
    return len(x) == len(host.kernel_size) + 2


def _no_kernel(name: str, x: Shape, y: Shape) -> KernelError:
    return KernelError(
        f"layer {name!r} maps {x} to {y}; kernels exist for (B, F), (B, T, F), (B, C, L) and "
        "(B, C, H, W), with their axes in any order, for layers that change the features alone, "
        "and for those from (B, C, L) or (B, C, H, W) to (B, F)"
    )
