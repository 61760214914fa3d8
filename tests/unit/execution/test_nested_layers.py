"""Layers inside layers, patterns of names, and the whole model as one layer."""

import copy

import pytest
import torch
from torch import nn

import esper
from esper.contracts.seeds import SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.passes.isolation import shadow_step
from esper.execution.surgery import kasmina_layers, name_layers
from tests.unit.execution.models import losses

X = torch.linspace(-1, 1, 24).view(4, 6)
SEEDS = ["bottleneck", "glu"]


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), block, nn.Linear(6, 3))


def grown() -> nn.Module:
    """A model with a kernel in the output of each of three layers, one inside the other."""
    model = esper.wrap(plain(), ["", "2", "2.0"], SEEDS)
    for i, layer in enumerate(name_layers(model).values()):
        torch.manual_seed(i)
        out = 3 if layer.name == "(model)" else 6
        layer.load_kernel(0, nn.Linear(6, out))
        for state in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING):
            layer.advance(0, state)
    return model


def test_a_layer_may_lie_inside_another_and_keeps_its_name() -> None:
    model = esper.wrap(plain(), ["2.0", "2", ""], SEEDS)
    assert isinstance(model, KasminaLayer)
    assert torch.equal(model(X), plain()(X))
    assert list(name_layers(model)) == ["(model)", "2", "2.0"]
    assert list(name_layers(nn.ModuleDict({"net": model}))) == ["net", "net.2", "net.2.0"]
    assert model.get_submodule("2.0") is kasmina_layers(model)["host.2.host.0"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.mlp"], ["a.mlp", "b.0.mlp", "mlp"]),
        (["b.*.mlp"], ["b.0.mlp"]),
        (["b.**"], ["b.0", "b.0.mlp", "b.0.mlp.0", "b.0.mlp.1"]),
        (["*"], ["a", "b", "mlp"]),
        (["mlp", "m*"], ["mlp"]),
    ],
)
def test_patterns(patterns: list[str], expected: list[str]) -> None:
    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    model = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"mlp": nn.Linear(6, 6)}),
            "b": nn.ModuleList([nn.ModuleDict({"mlp": mlp()})]),
            "mlp": nn.Linear(6, 6),
        }
    )
    assert sorted(name_layers(esper.wrap(model, patterns, SEEDS))) == expected


def test_seeds_by_pattern() -> None:
    model = esper.wrap(plain(), ["0", "2.*"], {"2.*": ["gate"], "0": ["glu"], "2.2": ["lowrank"]})
    found = {name: layer.seed_blueprints for name, layer in name_layers(model).items()}
    assert found == {"0": ("glu",), "2.0": ("gate",), "2.1": ("gate",), "2.2": ("lowrank",)}


def test_nested_kernels_survive_a_checkpoint_and_hardening() -> None:
    model = grown()
    y = model(X)
    assert not torch.allclose(y, plain()(X))
    hard = esper.harden(model)
    assert torch.equal(hard(X), y)
    assert not any(type(m).__module__.startswith("esper") for m in hard.modules())
    assert torch.equal(copy.deepcopy(model)(X), y)
    back = esper.unwrap(model, discard_grown=True)
    assert torch.equal(back(X), plain()(X))
    assert not kasmina_layers(back)


@pytest.mark.parametrize("name", ["(model)", "2", "2.0"])
def test_isolation_of_a_layer_among_nested_ones(name: str) -> None:
    model = esper.wrap(plain(), ["", "2", "2.0"], SEEDS)
    layer = name_layers(model)[name]
    layer.load_kernel(0, nn.Linear(6, 3 if name == "(model)" else 6))
    layer.advance(0, SeedState.TRAINING)
    module = layer.seed(0).as_kernel().module
    before = [p.clone() for p in module.parameters()]
    y = model(X)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    batch = (X, torch.randn(4, 3))
    assert (
        shadow_step(model, layer, 0, loss_fn=losses, batch=batch, optimizer=optimizer) is not None
    )
    assert torch.equal(model(X), y)
    assert all(p.grad is None for p in model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
