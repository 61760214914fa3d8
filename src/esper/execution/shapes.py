"""Specifications of the wrapped layers, observed in one forward pass on real data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec
from esper.execution.isolation import LossFn
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import FAULTS
from esper.execution.side_effect_free import side_effect_free


@final
@dataclass(slots=True)
class _Call:
    """Call of a layer: input, version of its memory, output, and whether the host wrote into it."""

    x: Any
    version: int
    y: Any = None
    written: bool = False


def observe_shapes(
    model: nn.Module, layers: Mapping[str, KasminaLayer], *, loss_fn: LossFn, batch: Any
) -> dict[str, LayerSpec]:
    """Run the model once, in evaluation mode, and specify each wrapped layer.

    ``spec`` and ``mutates_input`` of every layer are set; the specifications are returned by name.

    Raises:
        KernelError: if the model fails on the batch, a layer is not used, or a layer does not map a
            tensor to a tensor.
    """
    seen: dict[str, _Call] = {}

    def enter(layer: KasminaLayer, args: Any, kwargs: Any, *, name: str) -> None:
        x = layer.input_of(args, kwargs)
        seen[name] = _Call(x, x._version if isinstance(x, Tensor) else 0)

    def leave(layer: KasminaLayer, args: Any, kwargs: Any, output: Any, *, name: str) -> None:
        seen[name].y = output
        seen[name].written |= isinstance(seen[name].x, Tensor) and (
            seen[name].x._version != seen[name].version
        )

    handles = []
    for name, layer in layers.items():
        before, after = partial(enter, name=name), partial(leave, name=name)
        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))
    try:
        with side_effect_free(model, training=False), torch.no_grad():
            loss_fn(model, batch)
    except FAULTS as error:
        raise KernelError(
            f"the model fails on a batch of the holdout data: {error}. Nothing was changed; "
            "loss_fn(model, batch) must run on every batch"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    specs = {name: _spec(layer, name, seen.get(name)) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.spec = specs[name]
        layer.mutates_input |= seen[name].written
    return specs


def _spec(layer: KasminaLayer, name: str, call: _Call | None) -> LayerSpec:
    if call is None:
        raise KernelError(
            f"layer {name!r} is never called in forward, so it cannot grow; wrap one that is"
        )
    x, y = call.x, call.y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise KernelError(
            f"layer {name!r} maps {type(x).__name__} to {type(y).__name__}; a layer that grows "
            "maps a tensor to a tensor"
        )
    return describe(layer.host, tuple(x.shape), tuple(y.shape), name=name)


def describe(
    host: nn.Module, x_shape: tuple[int, ...], y_shape: tuple[int, ...], *, name: str
) -> LayerSpec:
    """Specification of a layer from the shapes, batch first, that its host reads and writes.

    A convolution in the host tells (B, C, L) from (B, T, F).

    Raises:
        KernelError: if the shapes are none that a blueprint could fit.
    """
    ranks, layer_type = (len(x_shape), len(y_shape)), type(host).__name__
    convolves = any(_reads_channels(part) for part in host.modules())
    if ranks == (2, 2) or (ranks == (3, 3) and not convolves):
        kind = "features" if ranks == (2, 2) else "sequence"
        return LayerSpec(
            kind=kind, in_size=x_shape[-1], out_size=y_shape[-1], layer_type=layer_type
        )
    if ranks in ((3, 3), (4, 4)):
        return LayerSpec(
            kind=f"conv{ranks[0] - 2}d",
            in_size=x_shape[1],
            out_size=y_shape[1],
            in_extent=x_shape[2:],
            out_extent=y_shape[2:],
            layer_type=layer_type,
            **_geometry(host),
        )
    raise KernelError(
        f"layer {name!r} maps {x_shape} to {y_shape}; kernels exist for (B, F), (B, T, F), "
        "(B, C, L) and (B, C, H, W)"
    )


def _reads_channels(part: nn.Module) -> bool:
    return isinstance(part, _ConvNd | nn.BatchNorm1d | nn.GroupNorm | nn.InstanceNorm1d)


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
