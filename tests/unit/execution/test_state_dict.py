"""The topology travels with the state dict, into a fresh model and through every format."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import esper
from esper.contracts.errors import ConfigError, EsperError
from esper.contracts.seeds import SeedState
from esper.execution import topology
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.surgery import kasmina_layers, unwrap, wrap
from tests.unit.execution.models import CASES, Case, Noisy, batches, grow, losses, wrapped

KEY = "fc1._extra_state"


def fresh(seeds: int = 7) -> nn.Module:
    torch.manual_seed(5)
    return wrap(Noisy(), ["fc1", "fc2"], ["lowrank"] * seeds)


def grown() -> nn.Module:
    """Every state in one layer, one slot fossilised twice; two blending seeds in the other."""
    torch.manual_seed(0)
    model = Noisy()
    layer = wrapped(model, "fc1", 7, torch.randn(4, 6))
    for turn in range(2):
        grow(layer, 0, SeedState.FOSSILIZED, name=("glu", "gate")[turn], seed=turn)
        layer.advance(0, SeedState.DORMANT)
    for seed_idx, state in enumerate(list(SeedState)):
        if state is SeedState.CULLED:
            grow(layer, seed_idx, SeedState.TRAINING)
            layer.unload(seed_idx)
        elif state is not SeedState.DORMANT:
            grow(layer, seed_idx, state, name=("lowrank", "bottleneck")[seed_idx % 2], seed=9)
    other = wrapped(model, "fc2", 7, torch.randn(4, 6))
    grow(other, 2, SeedState.BLENDING)
    grow(other, 5, SeedState.BLENDING, name="scale")
    other.set_alpha(5, 0.625)
    assert layer.seed_states == tuple(SeedState)
    assert len(layer.fossils) == 3
    return model


def same(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key
        assert value.dtype == b.state_dict()[key].dtype
    for name, layer in kasmina_layers(a).items():
        other = kasmina_layers(b)[name]
        assert layer.seed_states == other.seed_states
        assert layer.seed_blueprints == other.seed_blueprints
        assert layer.is_grown == other.is_grown
        assert [s.recipe for s in layer._slots()] == [s.recipe for s in other._slots()]
        assert [s.kernel_id for s in layer._slots()] == [s.kernel_id for s in other._slots()]
    for training in (True, False):
        outputs = []
        for model in (a, b):
            torch.manual_seed(3)
            outputs.append(copy.deepcopy(model).train(training)(torch.ones(4, 6)))
        assert torch.equal(*outputs)


def through_torch(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    torch.save(state, path)
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def through_safetensors(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    save_file(state, path)
    return load_file(path)


@pytest.mark.parametrize("through", [None, through_torch, through_safetensors])
def test_into_a_fresh_model(
    through: Callable[[dict[str, Tensor], Path], dict[str, Tensor]] | None, tmp_path: Path
) -> None:
    model = grown()
    state = model.state_dict()
    if through is not None:
        state = through(state, tmp_path / "model")
    target = fresh()
    assert target.load_state_dict(state, strict=True) == ([], [])
    same(model, target)
    # Life goes on where it was.
    kasmina_layers(target)["fc1"].advance(6, SeedState.DORMANT)
    kasmina_layers(target)["fc2"].advance(5, SeedState.HOLDING)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_host(case: Case) -> None:
    model, target = case.model(), case.model()
    layer = wrapped(model, case.layer, 2, case.x())
    grow(layer, 0, SeedState.FOSSILIZED)
    grow(layer, 1, SeedState.BLENDING)
    wrap(target, [case.layer], ["lowrank"] * 2)
    target.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(target.eval()(case.x()), model.eval()(case.x()))


def test_into_a_model_that_has_grown_something_else() -> None:
    model, target = grown(), grown()
    for name in ("fc1", "fc2"):
        layer = kasmina_layers(target)[name]
        layer.unload(2)
    grow(kasmina_layers(target)["fc2"], 0, SeedState.FOSSILIZED, name="glu")
    target.load_state_dict(model.state_dict())
    same(model, target)
    target.load_state_dict(fresh().state_dict())
    same(fresh(), target)
    assert not any(layer.is_grown for layer in kasmina_layers(target).values())


def test_as_part_of_a_larger_model_and_as_a_layer_alone() -> None:
    model = nn.ModuleDict({"trunk": grown(), "head": nn.Linear(3, 2)})
    target = nn.ModuleDict({"trunk": fresh(), "head": nn.Linear(3, 2)})
    target.load_state_dict(model.state_dict())
    same(model["trunk"], target["trunk"])
    layer = KasminaLayer(nn.Linear(6, 8), name="fc1", seeds=[""] * 7)
    layer.load_state_dict(kasmina_layers(grown())["fc1"].state_dict())
    assert layer.seed_states == tuple(SeedState)


def test_other_precision_modes_and_assignment() -> None:
    model = grown()
    target = fresh().double().eval()
    target.load_state_dict(model.state_dict())
    assert {p.dtype for p in target.parameters()} == {torch.float64}
    assert not any(m.training for m in target.modules())
    with torch.device("meta"):
        empty = wrap(Noisy(), ["fc1", "fc2"], ["lowrank"] * 7)
    empty.load_state_dict(model.state_dict(), assign=True)
    same(model, empty)


def test_deepcopy_is_independent() -> None:
    model = grown()
    twin = copy.deepcopy(model)
    same(model, twin)
    before = model.eval()(torch.ones(4, 6))
    layer = kasmina_layers(twin)["fc1"]
    layer.unload(3)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(model(torch.ones(4, 6)), before)
    assert kasmina_layers(model)["fc1"].seed_states == tuple(SeedState)


def test_whole_model_through_pickle() -> None:
    model = grown()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    same(model, torch.load(file, weights_only=False))


def test_training_goes_on_bit_for_bit() -> None:
    model, target = grown(), fresh()
    target.load_state_dict(model.state_dict())
    outcome = []
    for each in (model, target):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for batch in batches(3):
            optimizer.zero_grad()
            torch.autograd.backward(losses(each, batch).mean())
            optimizer.step()
        outcome.append(each)
    same(*outcome)


# --- what cannot be rebuilt -----------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Tensor]:
    state = grown().state_dict()
    # In the layer that is loaded last, so that the first would be changed already.
    key = "fc2._extra_state"
    content = json.loads(bytes(state[key].tolist()))
    change(content)
    state[key] = torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)
    return state


def garbled() -> dict[str, Tensor]:
    state = grown().state_dict()
    state["fc2._extra_state"] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    return state


def of_the_users_own(state: SeedState) -> dict[str, Tensor]:
    model = grown()
    layer = kasmina_layers(model)["fc2"]
    layer.load_kernel(0, nn.Linear(8, 8))
    for step in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING, SeedState.FOSSILIZED):
        if layer.seed_states[0] is not state:
            layer.advance(0, step)
    return model.state_dict()


BAD: list[tuple[Callable[[], dict[str, Tensor]], str]] = [
    (lambda: edited(lambda c: c.update(schema=2)), "schema 2, this version reads up to 1; upgrade"),
    (lambda: edited(lambda c: c["seeds"].pop()), "has 7 seeds and the checkpoint has 6"),
    (
        lambda: edited(lambda c: c["seeds"][2]["recipe"].update(blueprint="botleneck")),
        "Did you mean 'bottleneck'",
    ),
    (garbled, "is not the topology of a wrapped layer"),
    (
        lambda: of_the_users_own(SeedState.TRAINING),
        "layer 'fc2' held or absorbed .* load_kernel it again",
    ),
    (lambda: of_the_users_own(SeedState.FOSSILIZED), "absorbed 'fc2:0:Linear'.*esper.harden"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
@pytest.mark.parametrize("nested", [False, True])
def test_what_cannot_be_rebuilt_changes_nothing(
    make: Callable[[], dict[str, Tensor]], message: str, *, nested: bool
) -> None:
    target, state = fresh(), make()
    before = copy.deepcopy(target.state_dict())
    modules = [(name, id(module)) for name, module in target.named_modules()]
    outer = nn.ModuleDict({"trunk": target}) if nested else target
    prefix = "trunk." if nested else ""
    with pytest.raises(EsperError, match=message):
        outer.load_state_dict({f"{prefix}{key}": value for key, value in state.items()})
    assert [(name, id(module)) for name, module in target.named_modules()] == modules
    assert target.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_kernel_of_the_users_own_is_loaded_by_hand_first() -> None:
    torch.manual_seed(0)
    model, target = (wrap(Noisy(), ["fc2"], ["lowrank"]) for _ in range(2))
    for each in (model, target):
        kasmina_layers(each)["fc2"].load_kernel(0, nn.Linear(8, 8))
    kasmina_layers(model)["fc2"].advance(0, SeedState.TRAINING)
    target.load_state_dict(model.state_dict())
    same(model, target)


def test_topology_is_plain_json_in_bytes() -> None:
    packed = grown().state_dict()[KEY]
    assert packed.dtype == torch.uint8
    content = json.loads(bytes(packed.tolist()))
    assert content["schema"] == topology.SCHEMA
    assert [seed["state"] for seed in content["seeds"]] == [str(state) for state in SeedState]
    assert [record["recipe"]["blueprint"] for record in content["fossils"]] == [
        "glu",
        "gate",
        "bottleneck",
    ]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_the_state_of_the_plain_model_is_that_of_one_without_kernels(
    *, strict: bool, assign: bool
) -> None:
    model, plain = fresh(), Noisy()
    odd = model.load_state_dict(copy.deepcopy(plain.state_dict()), strict=strict, assign=assign)
    assert not odd.missing_keys
    assert not odd.unexpected_keys
    assert all(map(torch.equal, unwrap(model).state_dict().values(), plain.state_dict().values()))


def test_blocks_in_blocks_layers_without_weights_and_widths_read_plain_weights() -> None:
    def make() -> nn.Module:
        inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        return nn.Sequential(inner, nn.Tanh(), nn.Linear(6, 3))

    plain, x = make(), torch.randn(4, 6)
    beside: list[nn.Module] = [
        wrap(make(), ["0", "0.2", "1"]),
        esper.wrap(make(), example=x, widen="auto"),
    ]
    for model in beside:
        model.load_state_dict(plain.state_dict())
        assert torch.equal(model(x), plain(x))


def test_the_plain_state_of_a_layer_that_has_kernels_lacks_them() -> None:
    model = grown()
    with pytest.raises(RuntimeError, match=r'Missing key.*"fc1\.fossils\.0'):
        model.load_state_dict(Noisy().state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"fc1\.host\.weight"'):
        fresh().load_state_dict({n: t for n, t in Noisy().state_dict().items() if "fc1" not in n})


def test_after_unwrap_any_state_loads_again() -> None:
    model = unwrap(fresh())
    model.load_state_dict(Noisy().state_dict())
    assert not model._load_state_dict_pre_hooks


def test_packed_topology_of_a_wrong_kind() -> None:
    with pytest.raises(ConfigError, match="not the topology of a wrapped layer"):
        topology.plan({"schema": 1}, "fc1", [], [], {})
