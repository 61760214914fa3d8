"""Rows of a kernel, set against what it reads."""

import pytest
import torch
from torch import Tensor, nn

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


@pytest.mark.parametrize("count", [3, 20, 5000])
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
    ],
)
def test_an_input_that_tells_nothing_changes_nothing(x: Tensor) -> None:
    kernel = nn.Linear(4, 3)
    before = kernel.weight.clone()
    look(kernel, x)
    assert torch.equal(kernel.weight, before)


@pytest.mark.parametrize(
    "name", [name for name in BLUEPRINTS.names() if BLUEPRINTS.create(name).whitened]
)
def test_a_kernel_adds_nothing_before_and_after(name: str) -> None:
    blueprint = BLUEPRINTS.create(name)
    kind = blueprint.kinds[0]
    extent = {"conv1d": (9,), "conv2d": (8, 8), "pool1d": (9,), "pool2d": (8, 8)}.get(kind, ())
    spec = LayerSpec(kind=kind, in_size=6, out_size=6, in_extent=extent, out_extent=extent)
    kernel = build(name, spec, budget=4000, seed=0)
    shape = {"sequence": (12, 7, 6), "features": (12, 6)}.get(kind, (12, 6, *extent))
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
