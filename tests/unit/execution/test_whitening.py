"""Rows of a kernel, set against what it reads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from esper.blueprints import BLUEPRINTS, build
from esper.contracts.seeds import LayerSpec
from esper.execution.training.whitening import whitening

# N examples, F features


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(count: int, features: int) -> Tensor:
    """Examples with a mean, most of whose variance lies in one direction."""
    common = 2 * drawn(count, 1, seed=1) * drawn(features, seed=2)
    return 5.0 + common + drawn(count, features, seed=3)


def look(kernel: nn.Module, x: Tensor) -> None:
    with whitening(kernel), torch.no_grad():
        kernel(x)


def share_of_the_largest(x_NF: Tensor) -> float:
    variances = torch.linalg.eigvalsh(torch.cov(x_NF.T))
    return float(variances[-1] / variances.sum())


def test_hidden_values_have_no_mean_one_spread_and_many_directions() -> None:
    kernel = nn.Sequential(nn.Linear(8, 64), nn.GELU())
    x = correlated(256, 8)
    with torch.no_grad():
        before = kernel[0](x)
        look(kernel, x)
        hidden = kernel[0](x)
    assert share_of_the_largest(hidden) < share_of_the_largest(before) / 2
    torch.testing.assert_close(hidden.mean(dim=0), torch.zeros(64), atol=1e-3, rtol=0)
    spread = before.var(dim=0).mean().sqrt()
    torch.testing.assert_close(hidden.std(dim=0), spread.expand(64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("count", [32, 49, 5000])
def test_examples_may_be_fewer_than_features_or_very_many(count: int) -> None:
    kernel = nn.Linear(50, 6)
    x = correlated(count, 50)
    spread = float(kernel(x).detach().var(dim=0).mean().sqrt())
    look(kernel, x)
    assert torch.isfinite(kernel.weight).all()
    assert kernel(x).detach().std(dim=0) == pytest.approx([spread] * 6, rel=0.1)


@pytest.mark.parametrize(
    "kernel",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(4, 8, (3, 5), stride=2, dilation=2, groups=2, padding_mode="reflect", padding=2),
        nn.Conv2d(6, 6, 3, groups=6, padding="same", padding_mode="circular", bias=False),
        nn.Conv1d(4, 3, 4, padding=3, stride=3),
        nn.Conv2d(3, 5, 1),
    ],
    ids=str,
)
def test_filters_see_their_patches(kernel: nn.Conv1d | nn.Conv2d) -> None:
    extent = (14, 15)[: len(kernel.kernel_size)]
    x = 2.0 + 3 * drawn(16, kernel.in_channels, *extent).cumsum(dim=-1)

    def spread() -> Tensor:
        y: Tensor = kernel(x).detach()
        return y.movedim(1, -1).flatten(0, -2).std(dim=0)

    before = spread()
    look(kernel, x)
    # A sample of the places is seen, so the spread over all of them is near it.
    for ours, theirs in zip(
        spread().chunk(kernel.groups), before.chunk(kernel.groups), strict=True
    ):
        expected = float(theirs.square().mean().sqrt())
        assert ours == pytest.approx([expected] * len(ours), rel=0.35)


@pytest.mark.parametrize(
    "x",
    [
        torch.full((9, 4), 0.1),
        torch.zeros(9, 4),
        torch.full((9, 4), float("nan")),
        drawn(1, 4),
        drawn(0, 4),
        drawn(31, 4),
        1e160 * drawn(64, 4).double(),
    ],
)
def test_an_input_that_tells_nothing_changes_nothing(x: Tensor) -> None:
    kernel = nn.Linear(4, 3).to(x.dtype)
    before = kernel.weight.clone()
    look(kernel, x)
    assert torch.equal(kernel.weight, before)


@pytest.mark.parametrize("count", [127, 128, 140, 146])
def test_of_a_picture_all_places_are_seen(count: int) -> None:
    """Every seventh of 7 x 7 places would be those at one border, where nothing is to be seen."""
    x = torch.zeros(count, 1, 28, 28)
    x[:, :, :, 4:24] = drawn(count, 1, 28, 20)
    kernel = nn.Conv2d(1, 16, 3, padding=1)
    before, spread = kernel.weight.clone(), kernel(x).detach().std()
    look(kernel, x)
    assert not torch.equal(kernel.weight, before)
    assert float(kernel(x).detach().std() / spread) == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize(("count", "length"), [(1024, 8), (512, 196), (256, 100), (2048, 4)])
def test_of_a_sequence_all_positions_are_seen(count: int, length: int) -> None:
    x = torch.zeros(count, length, 5)
    x[:, length // 2] = 10 * drawn(count, 5)
    kernel = nn.Linear(5, 4)
    before = kernel.weight.clone()
    look(kernel, x)
    assert not torch.equal(kernel.weight, before)
    assert float(kernel(x).detach().mean().abs()) < 0.1


class Largest(TorchDispatchMode):
    """Size of the largest tensor that was made, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.size = max(self.size, made.untyped_storage().nbytes())
        return made


def test_wide_filters_cost_no_more_memory_than_the_patches_that_are_seen() -> None:
    kernel, x = nn.Conv2d(512, 8, 3, padding=1), drawn(96, 512, 14, 14)
    with Largest() as largest:
        look(kernel, x)
    assert largest.size <= 1.1 * max(8 * 1024 * 512 * 9, 4 * 96 * 512 * 16 * 16)


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.map(input=x)
        return y


def test_a_map_may_be_called_by_name() -> None:
    kernel = ByName()
    before = kernel.map.weight.clone()
    look(kernel, correlated(64, 8))
    assert not torch.equal(kernel.map.weight, before)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm, nn.utils.spectral_norm])
def test_a_map_whose_weight_is_computed_stays(norm: Callable[[nn.Module], nn.Module]) -> None:
    kernel = norm(nn.Linear(8, 4)).eval()
    x = correlated(64, 8)
    before = kernel(x).detach()
    look(kernel, x)
    assert torch.equal(kernel(x), before)


@pytest.mark.parametrize(
    "name", [name for name in BLUEPRINTS.names() if BLUEPRINTS.create(name).whitened]
)
def test_a_kernel_adds_nothing_before_and_after(name: str) -> None:
    blueprint = BLUEPRINTS.create(name)
    kind = blueprint.kinds[0]
    extent = {"conv1d": (9,), "conv2d": (8, 8), "pool1d": (9,), "pool2d": (8, 8)}.get(kind, ())
    spec = LayerSpec(kind=kind, in_size=6, out_size=6, in_extent=extent, out_extent=extent)
    kernel = build(name, spec, budget=4000, seed=0)
    shape = {"sequence": (12, 7, 6), "features": (40, 6)}.get(kind, (40, 6, *extent))
    x = 3.0 + drawn(*shape)
    before = {key: value.clone() for key, value in kernel.state_dict().items()}
    look(kernel, x)
    after = kernel.state_dict()
    assert not kernel(x).any()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed
    assert all(not any(zero in key for zero in blueprint.born_zero) for key in changed)


def test_half_precision_stays_half() -> None:
    kernel = nn.Linear(8, 4).to(torch.bfloat16)
    look(kernel, correlated(64, 8).to(torch.bfloat16))
    assert kernel.weight.dtype is torch.bfloat16
    assert torch.isfinite(kernel.weight).all()


def test_a_map_that_is_called_twice_is_set_once() -> None:
    kernel, x = nn.Linear(4, 3), correlated(32, 4)
    with whitening(kernel), torch.no_grad():
        kernel(x)
        once = kernel.weight.clone()
        kernel(100 * x)
    assert torch.equal(kernel.weight, once)
