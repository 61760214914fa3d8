"""An isolated kernel: out of the user's sight, and carried along with the model."""

import copy
import io

import pytest
import torch
from torch import nn

from esper.contracts.seeds import SeedState
from esper.execution.concealed import every_module, every_tensor
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.surgery import kasmina_layers, wrap


def grown(
    state: SeedState = SeedState.TRAINING,
) -> tuple[nn.Module, KasminaLayer, nn.Sequential]:
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), ["0"], seeds_per_layer=2)
    layer = kasmina_layers(model)["0"]
    kernel = nn.Sequential(nn.Linear(3, 5), nn.Dropout(), nn.BatchNorm1d(5))
    layer.load_kernel(0, kernel)
    layer.advance(0, SeedState.TRAINING)
    if state is SeedState.BLENDING:
        layer.advance(0, state)
    return model, layer, kernel


def kernel_of(model: nn.Module) -> nn.Module:
    return kasmina_layers(model)["0"].seed(0).as_kernel().module


def test_it_is_listed_from_blending_on() -> None:
    model, layer, kernel = grown()
    assert [name for name, _ in model.named_parameters()] == ["0.host.weight", "0.host.bias"]
    assert kernel not in list(model.modules())
    assert kernel in list(every_module(model))
    assert layer.grown_parameters == 3 * 5 + 5 + 2 * 5
    layer.advance(0, SeedState.BLENDING)
    assert sum(name.startswith("0.seeds.0.kernel.") for name, _ in model.named_parameters()) == 4
    assert list(every_module(model)) == list(model.modules())
    layer.unload(0)
    assert len(list(model.parameters())) == 2
    assert layer.grown_parameters == 0


def test_it_follows_types_modes_and_copies() -> None:
    model, layer, kernel = grown()
    model.double()
    model.eval()
    assert {t.dtype for t in every_tensor(layer) if t.is_floating_point()} == {torch.float64}
    assert not any(module.training for module in kernel.modules())
    twin = copy.deepcopy(model)
    other = kernel_of(twin)
    assert other is not kernel
    assert all(map(torch.equal, other.parameters(), kernel.parameters()))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    read = kernel_of(torch.load(buffer, weights_only=False))
    assert all(map(torch.equal, read.parameters(), kernel.parameters()))


def test_its_state_travels_with_the_models() -> None:
    model, _, kernel = grown()
    _, blending, _ = grown(SeedState.BLENDING)
    state = model.state_dict()
    assert [k for k in state if "kernel" in k] == [
        f"0.{key}" for key in blending.state_dict() if "kernel" in key
    ]
    kept = kernel.get_parameter("0.weight")
    saved = copy.deepcopy(state)
    with torch.no_grad():
        kept.zero_()
    model.load_state_dict(saved)
    assert kernel.get_parameter("0.weight") is kept
    assert torch.equal(kept, saved["0.seeds.0.kernel.0.weight"])


def test_what_does_not_fit_it_is_named() -> None:
    model, _, _ = grown()
    state = model.state_dict()
    bias = state.pop("0.seeds.0.kernel.0.bias")
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.seeds\.0\.kernel\.0\.bias"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.seeds\.0\.kernel\.odd"):
        model.load_state_dict(
            {**state, "0.seeds.0.kernel.0.bias": bias, "0.seeds.0.kernel.odd": bias}
        )
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.bias"):
        model.load_state_dict({**state, "0.seeds.0.kernel.0.bias": torch.zeros(7)})
