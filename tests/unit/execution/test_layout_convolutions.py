"""A kernel beside a convolution keeps its geometry, its edges and its groups."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper import blueprints
from esper.contracts.seeds import LayerSpec
from esper.execution.kernel import Recipe
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, wrap
from esper.testing.blueprint_laws import awaken
from tests.unit.execution.models import squares

CONVOLUTIONS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2),
    lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"),
    lambda: nn.Conv1d(4, 6, 1, stride=2, padding_mode="reflect"),
    lambda: nn.Conv2d(4, 6, (2, 3), padding="same", padding_mode="replicate"),
    lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect", groups=2),
    lambda: nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4),
    lambda: nn.Conv2d(4, 6, 2, padding="valid"),
]


def observed(host: nn.Module, x: Tensor) -> LayerSpec:
    model = wrap(nn.Sequential(host), ["0"], ["scale"])
    return observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=x)["0"]


@pytest.mark.parametrize("host", [make() for make in CONVOLUTIONS], ids=str)
@pytest.mark.parametrize("name", ["conv_bottleneck", "conv_block", "depthwise"])
def test_a_kernel_moves_as_its_convolution_at_every_extent(host: nn.Module, name: str) -> None:
    rank = host.weight.ndim - 2  # type: ignore[operator]
    spec = observed(host, torch.ones(2, 4, *(9, 12)[:rank]))
    kernel = awaken(blueprints.build(name, spec, budget=3000, seed=0))
    for extent in ((9, 12), (16, 11), (7, 8)):
        x = torch.randn(2, 4, *extent[:rank])
        assert kernel(x).shape == host(x).shape


def test_what_lies_beyond_the_edge_is_what_the_host_sees_there() -> None:
    x = torch.randn(1, 1, 8)
    circular = nn.Conv1d(1, 1, 4, padding="same", padding_mode="circular")
    reflect = nn.Conv1d(1, 1, 4, padding="same", padding_mode="reflect")
    for mode, host in (("circular", circular), ("reflect", reflect)):
        spec = observed(host, x)
        kernel = awaken(blueprints.build("depthwise", spec, budget=60, seed=0))
        bare = LayerSpec(
            kind="conv1d", in_size=1, out_size=1, in_extent=(11,), out_extent=(8,), kernel_size=(4,)
        )
        plain = blueprints.build("depthwise", bare, budget=60, seed=0)
        for ours, theirs in zip(plain.parameters(), kernel.parameters(), strict=True):
            ours.data.copy_(theirs.data)
        assert torch.allclose(kernel(x), plain(F.pad(x, (1, 2), mode=mode)), atol=1e-6)


@pytest.mark.parametrize("name", ["conv_bottleneck", "conv_block", "depthwise", "se"])
def test_groups_that_the_host_keeps_apart_stay_apart(name: str) -> None:
    x = torch.randn(1, 6, 8)
    spec = observed(nn.Conv1d(6, 6, 3, padding=1, groups=3), x)
    kernel = awaken(blueprints.build(name, spec, budget=400, seed=0))
    changed = x.clone()
    changed[:, 2:4] += 1
    moved = (kernel(x) != kernel(changed)).any(dim=2).flatten().tolist()
    assert moved == [False, False, True, True, False, False]


def test_a_recipe_of_before_groups_and_layouts_still_builds() -> None:
    spec = LayerSpec(kind="conv1d", in_size=4, out_size=4, in_extent=(8,), out_extent=(8,))
    recipe = Recipe(blueprint="conv_block", spec=spec, budget=200, seed=1)
    data = recipe.to_json()
    for name in ("padding_after", "padding_mode", "groups", "layout", "causal", "doubt"):
        del data["spec"][name]
    assert Recipe.from_json(data) == recipe
