from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from esper.blueprints import BLUEPRINTS, build, fitting
from esper.blueprints.geometry import Axis, axes
from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec
from esper.testing.blueprint_laws import awaken

CONVOLUTIONS = ("conv_bottleneck", "conv_block", "depthwise")


def seen(read: int, written: int, **own: Any) -> LayerSpec:
    spec = LayerSpec(kind="conv1d", in_size=3, out_size=4, in_extent=(read,), out_extent=(written,))
    return replace(spec, **own)


@pytest.mark.parametrize(
    ("read", "written", "axis"),
    [
        (8, 8, Axis(3, 1, 1, 1)),
        (1, 1, Axis(3, 1, 1, 1)),
        (8, 4, Axis(3, 2, 1, 1)),  # exact: padded, as a convolution of stride 2
        (7, 4, Axis(3, 2, 1, 1)),  # ceil
        (7, 3, Axis(3, 2, 0, 1)),  # floor, as pooling by 2
        (5, 2, Axis(3, 2, 0, 1)),  # a stride of 2 before one of 3 or 4
        (9, 3, Axis(3, 3, 1, 1)),
        (16, 4, Axis(4, 4, 1, 2)),  # as long as the stride: nothing is skipped
        (28, 1, Axis(28, 28, 13, 14)),
    ],
)
def test_stride_from_extents(read: int, written: int, axis: Axis) -> None:
    assert axes(seen(read, written)) == (axis,)
    assert axis.extent(read) == written


@pytest.mark.parametrize(("read", "written"), [(28, 24), (8, 16), (8, 0)])
def test_extents_that_no_stride_gives(read: int, written: int) -> None:
    with pytest.raises(KernelError, match=rf"its extents, {read} -> {written}; wrap the conv"):
        axes(seen(read, written))
    assert fitting(seen(read, written)) == []
    with pytest.raises(KernelError, match=r"conv1d layer \(3x.* that fit this layer: none"):
        build("conv_block", seen(read, written), budget=1000, seed=0)


def test_the_host_s_own_geometry_is_taken_as_it_is() -> None:
    spec = seen(28, 12, kernel_size=(5,), stride=(2,), padding=(0,), dilation=(1,))
    assert axes(spec) == (Axis(5, 2, 0, 0),)
    assert axes(seen(9, 5, kernel_size=(3,), dilation=(2,))) == (Axis(3, 1, 0, 0, 2),)


def test_a_host_of_size_1_gets_a_kernel_that_sees_neighbours() -> None:
    assert axes(seen(8, 4, kernel_size=(1,), stride=(2,))) == (Axis(3, 2, 1, 1),)


def test_a_geometry_that_contradicts_what_was_seen() -> None:
    with pytest.raises(KernelError, match="gives 6 from 8, not 8"):
        axes(seen(8, 8, kernel_size=(3,)))
    with pytest.raises(KernelError, match=r"need 1 number\(s\) each"):
        axes(seen(8, 8, kernel_size=(3, 3)))


def test_a_convolution_whose_extents_are_unknown() -> None:
    spec = LayerSpec(kind="conv2d", in_size=3, out_size=4)
    with pytest.raises(KernelError, match=r"must have 2 number\(s\) each"):
        build("depthwise", spec, budget=1000, seed=0)


@pytest.mark.parametrize("name", ["scale", "se"])
def test_a_strided_host_that_kept_its_extent_by_chance(name: str) -> None:
    spec = LayerSpec(
        kind="conv1d",
        in_size=3,
        out_size=3,
        in_extent=(1,),
        out_extent=(1,),
        kernel_size=(1,),
        stride=(2,),
    )
    assert "changes the shape" in BLUEPRINTS.create(name).objection(spec)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_pooling_block_of_odd_extent(name: str) -> None:
    host = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.MaxPool1d(2))
    kernel = awaken(build(name, seen(7, 3), budget=500, seed=0))
    for length in (7, 11, 15, 2):
        x = torch.ones(2, 3, length)
        assert kernel(x).shape == host(x).shape
