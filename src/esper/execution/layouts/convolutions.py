"""Geometry of a host in the specification of its layer: that of a convolution, or one derived."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from esper.blueprints import geometry
from esper.contracts.seeds import LayerSpec
from esper.execution.layouts.dry_run import told_by_type

Extents = Sequence[Sequence[tuple[int, int]]]
"""Extents read and written, axis by axis."""


def with_geometry(spec: LayerSpec, host: nn.Module, seen: Extents) -> LayerSpec:
    """Specification of a convolutional layer with a geometry that has all extents seen.

    That of the host's attributes, if it has some and they hold; else one that is derived.
    """
    told = replace(spec, **_geometry(host))
    if told_by_type(host) is not None or not told.kernel_size:
        return geometry.confirmed(told, seen)
    # A subclass that pads by itself has another padding than its attributes say, or is masked.
    for candidate in filter(None, (None if spec.causal else told, _padded_by_itself(told))):
        if not geometry.misfit(candidate) and geometry.confirmed(candidate, seen) == candidate:
            return candidate
    return geometry.confirmed(replace(spec, groups=told.groups), seen)


def _geometry(host: nn.Module) -> dict[str, Any]:
    """Geometry of a host that is itself a convolution, as fields of ``LayerSpec``."""
    if not isinstance(host, nn.Conv1d | nn.Conv2d):
        return {"groups": host.groups} if isinstance(host, _ConvNd) else {}
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


def _padded_by_itself(told: LayerSpec) -> LayerSpec | None:
    """The same convolution with the padding that its extents need; all before, if it is causal."""
    numbers = zip(
        told.in_extent, told.out_extent, told.kernel_size, told.stride, told.dilation, strict=True
    )
    around = [(out - 1) * s + d * (k - 1) + 1 - read for read, out, k, s, d in numbers]
    if min(around) < 0:
        return None
    before = tuple(both if told.causal else both // 2 for both in around)
    after = tuple(both - first for both, first in zip(around, before, strict=True))
    return replace(told, padding=before, padding_after=after)
