"""Wrap and unwrap: what is refused leaves the model as it was, module by module."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.contracts.errors import ConfigError, EsperError, LifecycleError
from esper.contracts.seeds import SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.surgery import kasmina_layers, unwrap, wrap
from tests.unit.execution.models import CASES, Case, Noisy, grow, wrapped


class Shared(nn.Module):
    """One layer under two names, and one block too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 6)
        self.fc2 = self.fc1
        self.block1 = nn.Sequential(nn.Linear(6, 6))
        self.block2 = self.block1

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.block1(self.fc2(self.fc1(x))))  # type: ignore[no-any-return]


class Attentive(nn.Module):
    """Has PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()


def picture(model: nn.Module) -> list[tuple[str, int, bool]]:
    return [(name, id(m), m.training) for name, m in model.named_modules()]


def fused_paths(model: nn.Module) -> list[tuple[object, object]]:
    names = ("activation_relu_or_gelu", "use_nested_tensor")
    return [(getattr(m, names[0], None), getattr(m, names[1], None)) for m in model.modules()]


def noisy() -> nn.Module:
    torch.manual_seed(0)
    return Noisy()


REFUSED: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (noisy, {"layers": ["fc3"]}, "unknown layer 'fc3'.*Did you mean 'fc"),
    (noisy, {"layers": ["fc1", "fc3"]}, "unknown layer 'fc3'"),
    (noisy, {"layers": ["fc*.x"]}, "'fc\\*.x', which matches no module; .*Names: fc1"),
    (lambda: wrap(noisy(), [""]), {"layers": [""]}, "layer '' is wrapped already"),
    (noisy, {"layers": []}, "layers is empty"),
    (noisy, {"layers": ["fc1"], "seeds": ["botleneck"]}, "Did you mean 'bottleneck'"),
    (noisy, {"layers": ["fc1", "fc2"], "seeds": {"fc1": ["glu"]}}, "no blueprints for layer 'fc2'"),
    (noisy, {"layers": ["fc1", "fc2"], "seeds": {"fc1": ["glu"], "fc2": ["glue"]}}, "'glue'"),
    (noisy, {"layers": ["fc1"], "seeds": "glue"}, "unknown blueprint 'glue'.*mean 'glu'"),
    (noisy, {"layers": ["fc1"], "seeds": []}, "layer 'fc1' got no seeds"),
    (noisy, {"layers": ["fc1"], "seeds_per_layer": 0}, "seeds_per_layer is 0"),
    (noisy, {"layers": ["fc1"], "seeds": ["glu"], "seeds_per_layer": 1}, "not both"),
    (Shared, {"layers": ["fc1"]}, "layer 'fc1' is shared: it is also fc2. .*of its own"),
    (Shared, {"layers": ["block2"]}, "layer 'block2' is shared: it is also block1"),
    (Shared, {"layers": ["block1.0"]}, "shared: it is also block2.0"),
    (Attentive, {"layers": ["attention.out_proj"]}, "never called: nn.MultiheadAttention"),
    (encoder, {"layers": ["layers.0"]}, "the first of an nn.TransformerEncoder"),
    (lambda: wrap(noisy(), ["fc1"]), {"layers": ["fc1"]}, "wrapped already"),
    (lambda: wrap(noisy(), ["fc1"]), {"layers": ["fc2", "fc1"]}, "wrapped already"),
    (lambda: wrap(noisy(), ["fc1"]), {"layers": ["fc1.host"]}, "wrapped already"),
]


@pytest.mark.parametrize(("make", "arguments", "message"), REFUSED)
def test_what_is_refused_leaves_the_model_untouched(
    make: Callable[[], nn.Module], arguments: dict[str, Any], message: str
) -> None:
    model = make()
    before, state = picture(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=message) as caught:
        wrap(model, **arguments)
    assert isinstance(caught.value, EsperError)
    assert picture(model) == before
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize("seeds", ["glu", ["glu"], {"fc1": "glu"}])
def test_one_name_is_one_layer_or_one_seed(seeds: Any) -> None:
    assert wrap(noisy(), "fc1", seeds).get_submodule("fc1").seed_blueprints == ("glu",)


def test_wrap_keeps_parameters_hooks_and_order() -> None:
    model = noisy()
    called: list[str] = []
    model.get_submodule("fc1").register_forward_hook(lambda *_: called.append("fc1"))
    model.get_submodule("fc2").requires_grad_(False)
    parameters = [(id(p), p.requires_grad) for p in model.parameters()]
    order = [name for name, _ in model.named_children()]
    assert wrap(model, ["fc1", "head"], seeds_per_layer=6) is model
    assert [(id(p), p.requires_grad) for p in model.parameters()] == parameters
    assert [name for name, _ in model.named_children()] == order
    model(torch.randn(3, 6))
    assert called == ["fc1"]


def test_seeds_by_layer_by_number_and_by_default() -> None:
    model: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    wrap(model, ["0", "2"])
    assert {name: layer.seed_blueprints for name, layer in kasmina_layers(model).items()} == {
        "0": ("conv_bottleneck", "depthwise", "conv_block", "conv_bottleneck"),
        "2": ("bottleneck", "gate", "glu", "lowrank"),
    }
    model = wrap(noisy(), ["fc1", "fc2"], {"fc1": ["glu"], "fc2": ["gate", "gate"]})
    assert [len(layer.seeds) for layer in kasmina_layers(model).values()] == [1, 2]
    assert [list(kasmina_layers(wrap(noisy(), "fc1")))] == [["fc1"]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unwrap_restores_the_very_same_modules(case: Case) -> None:
    model = case.model().eval()
    before = picture(model)
    allowed = fused_paths(model)
    with torch.no_grad():
        expected = model(case.x())
    layer = wrapped(model, case.layer, 2, case.x())
    grow(layer, 0, SeedState.HOLDING)
    layer.unload(0)
    grow(layer, 1, SeedState.TRAINING)
    assert unwrap(model) is model
    assert picture(model) == before
    assert fused_paths(model) == allowed
    with torch.no_grad():
        assert torch.equal(model(case.x()), expected)
    assert not any(type(m).__module__.startswith("esper") for m in model.modules())
    wrap(model, [case.layer])


@pytest.mark.parametrize("state", [SeedState.BLENDING, SeedState.HOLDING, SeedState.FOSSILIZED])
def test_unwrap_does_not_lose_what_has_grown_unasked(state: SeedState) -> None:
    case = next(case for case in CASES if case.name == "encoder-linear1")
    model = case.model().eval()
    before, allowed = picture(model), fused_paths(model)
    with torch.no_grad():
        expected = model(case.x())
    grow(wrapped(model, case.layer, 1, case.x()), 0, state)
    wrap(model, ["0.layers.0.linear2"])
    with pytest.raises(LifecycleError, match=r"has grown.*esper.harden.*discard_grown=True"):
        unwrap(model)
    assert isinstance(model.get_submodule(case.layer), KasminaLayer)
    assert fused_paths(model) != allowed
    unwrap(model, discard_grown=True)
    assert picture(model) == before
    assert fused_paths(model) == allowed
    with torch.no_grad():
        assert torch.equal(model(case.x()), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padded_sequences_through_a_grown_encoder() -> None:
    """The nested tensors of nn.TransformerEncoder's fast path would reach the kernel."""
    model = encoder()
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
    layers = ["layers.0.linear1", "layers.1.linear2"]
    wrap(model, layers, ["attention"])
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=padding), expected)
    layer = model.get_submodule(layers[1])
    assert isinstance(layer, KasminaLayer)
    layer.load_kernel(0, nn.Linear(16, 8))
    for state in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING):
        layer.advance(0, state)
    with torch.no_grad():
        without_grad = model(x, src_key_padding_mask=padding)
    with_grad = model(x, src_key_padding_mask=padding)
    assert torch.allclose(without_grad[~padding], with_grad[~padding], atol=1e-6)
    assert not torch.allclose(without_grad[~padding], expected[~padding], atol=1e-3)
    layer.unload(0)
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=padding), expected)
