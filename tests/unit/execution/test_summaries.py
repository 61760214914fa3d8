"""Layers from pictures or signals to features: whole networks, and stages with their pooling."""

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import esper
from esper.contracts.errors import KernelError
from esper.contracts.seeds import SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import name_layers
from tests.unit.execution.models import squares


def net(*, fixed: bool) -> nn.Sequential:
    torch.manual_seed(0)
    end: list[nn.Module] = [nn.Flatten()] if fixed else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    size = 4 * 36 if fixed else 4
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *end, nn.Linear(size, 5))


def named(model: nn.Module) -> dict[str, KasminaLayer]:
    return {name: la for name, la in name_layers(model).items() if isinstance(la, KasminaLayer)}


def observed(model: nn.Module, x: Tensor, seeds: list[str]) -> KasminaLayer:
    wrapped = esper.wrap(model, [""], seeds)
    layers = named(wrapped)
    observe_shapes(wrapped, layers, loss_fn=squares, batch=x)
    return layers["(model)"]


@pytest.mark.parametrize("fixed", [True, False])
def test_a_whole_network_from_pictures_to_features(*, fixed: bool) -> None:
    layer = observed(net(fixed=fixed), torch.randn(7, 2, 6, 6), ["conv_pool", "bottleneck"])
    spec = layer.spec
    assert spec is not None
    assert (spec.kind, spec.in_size, spec.in_extent, spec.out_size) == ("pool2d", 2, (6, 6), 5)
    assert spec.flat is fixed  # a flattened kernel would fail at another extent


@pytest.mark.parametrize("seed", ["conv_pool", "bottleneck", "glu", "lowrank"])
def test_kernels_of_such_a_layer_see_one_example_each(seed: str) -> None:
    layer = observed(net(fixed=True), torch.randn(7, 2, 6, 6), [seed])
    assert layer.spec is not None
    kernel = esper.blueprints.build(seed, layer.spec, budget=900, seed=0)
    layer.load_kernel(0, kernel)
    for parameter in kernel.parameters():
        nn.init.normal_(parameter)
    for state in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING):
        layer.advance(0, state)
    x = torch.randn(4, 2, 6, 6)
    y, changed = layer(x), x.clone()
    changed[1] += 1
    moved = (layer(changed) != y).any(dim=1)
    assert moved.tolist() == [False, True, False, False]
    assert not torch.equal(y, layer.host(x))


def test_a_pooled_kernel_takes_pictures_of_other_sizes() -> None:
    layer = observed(net(fixed=False), torch.randn(7, 2, 6, 6), ["conv_pool"])
    assert layer.spec is not None
    layer.load_kernel(0, esper.blueprints.build("conv_pool", layer.spec, budget=900, seed=0))
    for state in (SeedState.TRAINING, SeedState.BLENDING):
        layer.advance(0, state)
    x = torch.randn(3, 2, 9, 11)
    assert torch.equal(layer(x), layer.host(x))


def test_examples_on_another_axis_are_refused() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(fixed=False)

        @override
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.transpose(0, 1))  # type: ignore[no-any-return]

    model = esper.wrap(Turned(), [""], ["conv_pool"])
    layers, batch = named(model), torch.randn(7, 2, 6, 6)
    with pytest.raises(KernelError, match=r"maps \(2, 7, 6, 6\) to \(7, 5\), and no axis of"):
        observe_shapes(model, layers, loss_fn=_by_second, batch=batch)


def _by_second(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch.transpose(0, 1)).square().mean(dim=1)  # type: ignore[no-any-return]
