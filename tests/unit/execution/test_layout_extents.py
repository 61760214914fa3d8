"""Layers at other extents than those of the first batch, and what they read along an axis."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper import blueprints
from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, wrap
from esper.testing.blueprint_laws import awaken
from tests.unit.execution.layout_models import CausalBlock, Through
from tests.unit.execution.models import squares


def spec_of(
    layer: nn.Module, x: Tensor, *, layout: str = "", order: tuple[int, ...] = ()
) -> LayerSpec:
    model = wrap(Through(layer, *order), ["layer"], layout={"layer": layout} if layout else None)
    (spec,) = observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=x).values()
    return spec


def kernels(spec: LayerSpec) -> list[nn.Module]:
    names = blueprints.fitting(spec)
    return [
        awaken(blueprints.build(n, spec, budget=3 * blueprints.smallest(n, spec), seed=0))
        for n in names
    ]


# --- extents at run time --------------------------------------------------------------------------

RESIZING: dict[str, Callable[[], nn.Module]] = {
    "floor": lambda: nn.MaxPool2d(2),
    "ceil": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "padded": lambda: nn.AvgPool2d(3, 2, 1),
    "quarters": lambda: nn.MaxPool2d(4),
    "strided block": lambda: nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 1, 1)),
}


@pytest.mark.parametrize("make", RESIZING.values(), ids=list(RESIZING))
@pytest.mark.parametrize("size", [16, 17])
def test_a_kernel_has_the_extents_of_its_host_at_every_size(
    make: Callable[[], nn.Module], size: int
) -> None:
    host = make()
    found = kernels(spec_of(host, torch.randn(2, 3, size, size)))
    assert found
    for height in range(8, 24):
        x = torch.randn(2, 3, height, height + 3)
        assert {kernel(x).shape for kernel in found} == {host(x).shape}


def test_a_host_of_a_fixed_output_extent_gets_no_convolution() -> None:
    spec = spec_of(nn.AdaptiveAvgPool1d(4), torch.randn(2, 3, 16))
    assert blueprints.fitting(spec) == []
    with pytest.raises(
        KernelError, match="its extents, 16 -> 4, 15 -> 4, 14 -> 4, 17 -> 4, 8 -> 4;"
    ):
        blueprints.build("conv_block", spec, budget=500, seed=0)


class Flattened(nn.Module):
    """A layer of several ranks: the batch of one loses an axis, or a mean takes another."""

    def __init__(self, *, squeezes: bool, layer: nn.Module) -> None:
        super().__init__()
        self.squeezes = squeezes
        self.layer = layer

    @override
    def forward(self, x: Tensor) -> Tensor:
        if self.squeezes:
            return self.layer(x.squeeze()).reshape(len(x), -1)  # type: ignore[no-any-return]
        return self.layer(x).mean(1) + self.layer(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("squeezes", [True, False])
def test_a_layer_of_several_ranks_gets_kernels_of_its_features_alone(*, squeezes: bool) -> None:
    model = wrap(Flattened(squeezes=squeezes, layer=nn.Linear(4, 4)), ["layer"])
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=torch.randn(5, 6, 4)).values()
    assert spec.kind == "features"
    assert "has 2 axes in one pass and 3 in another" in spec.doubt
    for kernel in kernels(spec):
        assert kernel(torch.randn(6, 4)).shape == (6, 4)
        assert kernel(torch.randn(5, 6, 4)).shape == (5, 6, 4)


def test_a_convolution_that_loses_its_batch_of_one_is_refused() -> None:
    model = wrap(Flattened(squeezes=True, layer=nn.Conv1d(6, 6, 3, padding=1)), ["layer"])
    with pytest.raises(KernelError, match="as where a batch of one is squeezed; keep all axes"):
        observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=torch.randn(5, 6, 4))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ReLU()
        self.between = nn.Linear(4, 7)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.between(self.layer(x)))  # type: ignore[no-any-return]


def test_a_layer_of_several_numbers_of_features_is_refused() -> None:
    model = wrap(Twice(), ["layer"])
    with pytest.raises(KernelError, match="reads 4 features in one call and 7 in another"):
        observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=torch.randn(5, 4))


def test_examples_on_the_last_of_two_axes_are_not_mixed() -> None:
    spec = spec_of(nn.Tanh(), torch.randn(5, 4), order=(1, 0))
    assert spec.axes == "FB"
    x = torch.randn(4, 6)
    other = x.clone()
    other[:, 2] += 1
    for kernel in kernels(spec):
        y = kernel(x)
        moved = (y != kernel(other)).any(dim=0)
        constant = torch.equal(y, y[:, :1].expand_as(y))  # as an offset
        assert moved.tolist() == [index == 2 and not constant for index in range(6)]


def test_losses_per_token_tell_the_examples() -> None:
    def masked(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        losses = model(batch).square().mean(-1)
        return losses, torch.ones_like(losses)

    model = wrap(Through(nn.Linear(4, 4), 1, 0, 2), ["layer"])
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=masked, batch=torch.randn(5, 6, 4)).values()
    assert spec.axes == "TBF"


class ByMode(nn.Module):
    """A layer of other axes in training."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.flat = flat

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.layer(x)  # type: ignore[no-any-return]
        if self.flat:
            return self.layer(x.flatten(0, 1)).view_as(x)  # type: ignore[no-any-return]
        return self.layer(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("flat", "doubt"),
    [(True, "has 2 axes in one pass and 3 in another"), (False, "another in training; if it is")],
)
def test_a_layer_of_other_axes_in_training_mixes_none(*, flat: bool, doubt: str) -> None:
    model = wrap(ByMode(flat=flat), ["layer"])
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=torch.randn(5, 6, 4)).values()
    assert spec.kind == "features"
    assert doubt in spec.doubt
    assert model.training


# --- past and future ------------------------------------------------------------------------------


class PaddedConv1d(nn.Conv1d):
    """Causal: pads by itself, before the first element."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        past = self.dilation[0] * (self.kernel_size[0] - 1)
        return super().forward(F.pad(input, (past, 0)))


class Masked1d(nn.Conv1d):
    """Causal: reads nothing behind the middle of its window."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        middle = self.kernel_size[0] // 2 + 1
        mask = (torch.arange(self.kernel_size[0]) < middle).float()
        return self._conv_forward(input, self.weight * mask, self.bias)  # type: ignore[no-any-return]


PAST: dict[str, Callable[[], nn.Module]] = {
    "convolution of size 1": lambda: nn.Conv1d(4, 4, 1),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "slopes": lambda: nn.PReLU(4),
    "block": lambda: CausalBlock(4),
    "padded by itself": lambda: PaddedConv1d(4, 4, 3, dilation=2, groups=2),
    "masked": lambda: Masked1d(4, 4, 5, padding=2),
}


@pytest.mark.parametrize("make", PAST.values(), ids=list(PAST))
def test_what_reads_no_future_gets_kernels_that_read_none(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 12)
    spec = spec_of(make(), x)
    assert spec.causal
    other = x.clone()
    other[..., 7:] += 1
    found = kernels(spec)
    assert found
    for kernel in found:
        assert torch.equal(kernel(x)[..., :7], kernel(other)[..., :7])
        assert not torch.equal(kernel(x)[..., 7:], kernel(other)[..., 7:])


def test_the_user_s_word_frees_a_layer_that_mixes_nothing() -> None:
    spec = spec_of(nn.BatchNorm1d(4), torch.randn(3, 4, 12), layout="BCL")
    assert not spec.causal
    assert "se" in blueprints.fitting(spec)


def test_a_convolution_that_pads_by_itself_keeps_its_geometry() -> None:
    spec = spec_of(PaddedConv1d(4, 4, 3, dilation=2, groups=2), torch.randn(3, 4, 12))
    assert (spec.kernel_size, spec.dilation, spec.groups) == ((3,), (2,), 2)
    assert (spec.padding, spec.padding_after) == ((4,), (0,))


class Raster(nn.Conv2d):
    """Reads the rows above and, in its own row, what lies before."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        mask = torch.ones(3, 3)
        mask[1, 2] = mask[2] = 0.0
        return self._conv_forward(input, self.weight * mask, self.bias)  # type: ignore[no-any-return]


def test_an_order_over_two_axes_is_refused() -> None:
    spec = spec_of(Raster(3, 3, 3, padding=1), torch.randn(2, 3, 6, 7))
    assert not set(blueprints.fitting(spec)) & {"conv_block", "conv_bottleneck", "depthwise", "se"}
    assert "along axis 2 of its input it reads the past alone" in spec.doubt


def test_a_time_among_two_axes_by_the_user_s_word() -> None:
    spec = spec_of(nn.Conv2d(3, 3, 1), torch.randn(2, 3, 6, 7), layout="BCHT")
    x = torch.randn(2, 3, 6, 7)
    other = x.clone()
    other[..., 4:] += 1
    found = kernels(spec)
    assert len(found) >= 3
    for kernel in found:
        assert torch.equal(kernel(x)[..., :4], kernel(other)[..., :4])


# --- groups ---------------------------------------------------------------------------------------


def test_a_transposed_convolution_keeps_its_groups() -> None:
    spec = spec_of(nn.ConvTranspose1d(4, 4, 3, padding=1, groups=2), torch.randn(2, 4, 8))
    x = torch.randn(2, 4, 8)
    other = x.clone()
    other[:, 2:] += 1
    for name in ("conv_block", "conv_bottleneck", "depthwise"):
        kernel = awaken(blueprints.build(name, spec, budget=200, seed=0))
        assert torch.equal(kernel(x)[:, :2], kernel(other)[:, :2])


def test_groups_over_three_axes_are_refused() -> None:
    with pytest.raises(KernelError, match=r"keeps 2 groups of channels apart, .* Conv3d"):
        spec_of(nn.Conv3d(4, 4, 3, padding=1, groups=2), torch.randn(2, 4, 3, 4, 5))
