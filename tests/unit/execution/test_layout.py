"""Axes of a layer: what its kernels may mix, and what they must not."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from esper import blueprints
from esper.contracts.seeds import SeedState
from esper.execution.kernel import Kernel, Recipe
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, wrap
from esper.testing.blueprint_laws import awaken
from tests.unit.execution.layout_models import (
    CausalBlock,
    Inside,
    LastNorm2d,
    Merging,
    Mixer,
    NextBlock,
    Through,
)
from tests.unit.execution.models import squares


@dataclass
class Host:
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kind: str
    axes: str
    size: int
    kinds: tuple[str, ...] = ()
    causal: bool = False


HOSTS = {
    "linear TBF": Host(lambda: Through(nn.Linear(4, 3), 1, 0, 2), (5, 6, 4), "sequence", "TBF", 4),
    "linear BTF": Host(lambda: Through(nn.Linear(4, 3)), (5, 6, 4), "sequence", "BTF", 4),
    "linear BHWC": Host(lambda: Through(nn.Linear(4, 3)), (5, 6, 7, 4), "features", "BHWC", 4),
    "linear of 5": Host(lambda: Through(nn.Linear(4, 3)), (5, 2, 3, 2, 4), "features", "BNNNF", 4),
    "square": Host(lambda: Through(nn.Linear(5, 5), 1, 0, 2), (5, 5, 5), "sequence", "TBF", 5),
    "encoder TBF": Host(
        lambda: Through(nn.TransformerEncoderLayer(4, 2, 8), 1, 0, 2),
        (5, 6, 4),
        "sequence",
        "TBF",
        4,
    ),
    "conv inside BTF": Host(
        lambda: Through(Inside(4, 0, 2, 1)), (5, 6, 4), "sequence", "BLF", 4, ("sequence", "conv1d")
    ),
    "conv inside square": Host(
        lambda: Through(Inside(4, 0, 2, 1)), (4, 4, 4), "sequence", "BLF", 4, ("sequence", "conv1d")
    ),
    "conv inside TBF": Host(
        lambda: Through(Inside(4, 1, 2, 0), 1, 0, 2),
        (5, 6, 4),
        "sequence",
        "LBF",
        4,
        ("sequence", "conv1d"),
    ),
    "causal conv inside": Host(
        lambda: Through(Inside(4, 0, 2, 1, causal=True)), (5, 6, 4), "sequence", "BTF", 4
    ),
    "causal BCL": Host(lambda: Through(CausalBlock(4)), (5, 4, 6), "conv1d", "BCL", 4, causal=True),
    "batch norm": Host(
        lambda: Through(nn.BatchNorm1d(4)), (5, 4, 6), "conv1d", "BCL", 4, causal=True
    ),
    "group norm": Host(lambda: Through(nn.GroupNorm(2, 4)), (5, 4, 6, 7), "conv2d", "BCHW", 4),
    "norm of a subclass": Host(lambda: Through(LastNorm2d(4)), (5, 4, 6, 7), "conv2d", "BCHW", 4),
    "next": Host(
        lambda: Through(NextBlock(4)), (5, 6, 7, 4), "features", "BHWC", 4, ("features", "conv2d")
    ),
    "merging": Host(lambda: Through(Merging(4)), (5, 6, 8, 4), "conv2d", "BHWC", 4),
    "mixer": Host(
        lambda: Through(Mixer(6, 4)), (5, 6, 4), "sequence", "BLF", 4, ("sequence", "conv1d")
    ),
    "activation behind linear": Host(
        lambda: nn.Sequential(nn.Linear(4, 3), Through(nn.ReLU())), (5, 6, 4), "sequence", "BTF", 3
    ),
    "activation behind conv": Host(
        lambda: nn.Sequential(nn.Conv1d(4, 3, 1), Through(nn.ReLU())),
        (5, 4, 6),
        "conv1d",
        "BCL",
        3,
        causal=True,
    ),
    "pooling": Host(lambda: Through(nn.MaxPool2d(2)), (5, 4, 6, 8), "conv2d", "BCHW", 4),
    "conv3d": Host(
        lambda: Through(nn.Conv3d(4, 3, 3, padding=1)), (5, 4, 3, 4, 5), "features", "BCNNN", 4
    ),
}


def layer_name(model: nn.Module) -> str:
    names: list[str] = [name for name, _ in model.named_modules()]
    return min((name for name in names if name.split(".")[-1] == "layer"), key=len)


@pytest.mark.parametrize("host", HOSTS.values(), ids=list(HOSTS))
def test_what_a_layer_s_axes_are(host: Host) -> None:
    torch.manual_seed(0)
    model = host.model()
    name = layer_name(model)
    wrap(model, [name], ["scale"])
    x = torch.randn(host.shape)
    (spec,) = observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=x).values()
    assert (spec.kind, spec.axes, spec.in_size) == (host.kind, host.axes, host.size)
    assert spec.kinds == (host.kinds or (host.kind,))
    assert spec.causal is host.causal


@pytest.mark.parametrize("host", HOSTS.values(), ids=list(HOSTS))
def test_no_kernel_of_any_layout_mixes_examples(host: Host) -> None:
    torch.manual_seed(0)
    model = host.model().eval()
    name = layer_name(model)
    wrap(model, [name], ["scale"])
    x = torch.randn(host.shape)
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=x).values()
    names = blueprints.fitting(spec)
    assert names
    for blueprint in names:
        recipe = Recipe(blueprint=blueprint, spec=spec, budget=2000, seed=0)
        kernel = Kernel(module=awaken(recipe.build()), kernel_id=blueprint, recipe=recipe)
        layers[name].load_kernel(0, kernel)
        changed = x.clone()
        changed[1] += 10
        with torch.no_grad(), layers[name].showing(0, on=True):
            moved = (model(x) != model(changed)).flatten(1).any(dim=1)
        assert moved.tolist() == [index == 1 for index in range(len(x))], blueprint
        layers[name].unload(0)
        layers[name].advance(0, SeedState.DORMANT)


@pytest.mark.parametrize("length", [1, 3, 19])
@pytest.mark.parametrize("order", [(), (1, 0, 2)])
def test_a_kernel_of_one_length_works_at_others(length: int, order: tuple[int, ...]) -> None:
    model = wrap(Through(nn.Linear(4, 4), *order), ["layer"], ["scale"])
    layers = kasmina_layers(model)
    x = torch.randn(3, 16, 4)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=x).values()
    for blueprint in blueprints.fitting(spec):
        kernel = blueprints.build(blueprint, spec, budget=500, seed=0)
        shape = (2, length, 4) if not order else (length, 2, 4)
        assert kernel(torch.randn(shape)).shape == shape
