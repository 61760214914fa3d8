"""The life of a seed: the whole table, and what each step does to the layer."""

import pytest
import torch
from torch import nn

from esper.contracts.errors import ConfigError, LifecycleError
from esper.contracts.seeds import SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.lifecycle import BLENDED, RESTING, TRANSITIONS, check
from tests.unit.execution.models import PATH, grow, wrapped

STEPS = {
    ("dormant", "germinated"),
    ("germinated", "training"),
    ("germinated", "culled"),
    ("training", "blending"),
    ("training", "culled"),
    ("blending", "holding"),
    ("blending", "culled"),
    ("holding", "fossilized"),
    ("holding", "culled"),
    ("fossilized", "dormant"),
    ("culled", "dormant"),
}
ALL = list(SeedState)


def fresh(seeds: int = 2) -> KasminaLayer:
    torch.manual_seed(0)
    return wrapped(nn.Sequential(nn.Linear(6, 4)), "0", seeds, torch.randn(3, 6))


def brought(state: SeedState) -> KasminaLayer:
    layer = fresh()
    if state is SeedState.CULLED:
        grow(layer, 0, SeedState.TRAINING)
        layer.unload(0)
    elif state is not SeedState.DORMANT:
        grow(layer, 0, state)
    assert layer.seed_states[0] is state
    return layer


def test_table_is_that_of_the_design() -> None:
    assert {(str(a), str(b)) for a, allowed in TRANSITIONS.items() for b in allowed} == STEPS
    alone = {SeedState.DORMANT, SeedState.GERMINATED, SeedState.TRAINING}
    assert alone | BLENDED | RESTING == set(ALL)


@pytest.mark.parametrize("old", ALL)
@pytest.mark.parametrize("new", ALL)
def test_every_step(old: SeedState, new: SeedState) -> None:
    layer = brought(old)
    x = torch.randn(3, 6)
    before = layer(x)
    if (str(old), str(new)) in STEPS and new is not SeedState.GERMINATED:
        layer.advance(0, new)
        assert layer.seed_states[0] is new
        return
    with pytest.raises(LifecycleError, match="seed 0 of layer '0'"):
        layer.advance(0, new)
    assert layer.seed_states == (old, SeedState.DORMANT)
    assert torch.equal(layer(x), before)


def test_a_refused_step_says_what_is_allowed() -> None:
    with pytest.raises(
        LifecycleError, match="seed fc:0 is training and cannot become holding; allowed: blending"
    ):
        check("fc:0", SeedState.TRAINING, SeedState.HOLDING)
    with pytest.raises(LifecycleError, match=r"germinates by load_kernel\(seed_idx, kernel\)"):
        fresh().advance(0, SeedState.GERMINATED)


@pytest.mark.parametrize("state", [s for s in ALL if s is not SeedState.DORMANT])
def test_only_a_dormant_seed_takes_a_kernel(state: SeedState) -> None:
    layer = brought(state)
    held = layer.seed(0).kernel
    with pytest.raises(LifecycleError, match=f"is {state} and cannot become germinated"):
        layer.load_kernel(0, nn.Linear(6, 4))
    assert layer.seed(0).kernel is held
    assert layer.available_seeds == [1]


@pytest.mark.parametrize("seed_idx", [-1, 2, 99])
def test_unknown_seed(seed_idx: int) -> None:
    with pytest.raises(LifecycleError, match=f"layer '0' has no seed {seed_idx}; it has 0 to 1"):
        fresh().load_kernel(seed_idx, nn.Linear(6, 4))


def test_a_layer_has_seeds() -> None:
    with pytest.raises(ConfigError, match="layer 'fc' got no seeds"):
        KasminaLayer(nn.Linear(6, 4), name="fc", seeds=[])


def test_alpha_ramps_from_zero_to_one() -> None:
    layer, x = fresh(), torch.randn(3, 6)
    host = layer.host(x)
    module = nn.Linear(6, 4)
    layer.load_kernel(0, module)
    layer.advance(0, SeedState.TRAINING)
    layer.advance(0, SeedState.BLENDING)
    assert torch.equal(layer(x), host)
    for alpha in (0.0, 0.25, 0.5, 1.0):
        layer.set_alpha(0, alpha)
        assert torch.equal(layer(x), host + alpha * module(x))
    layer.set_alpha(0, 0.5)
    layer.advance(0, SeedState.HOLDING)
    assert torch.equal(layer(x), host + module(x))
    layer.advance(0, SeedState.FOSSILIZED)
    assert torch.equal(layer(x), host + module(x))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha: float) -> None:
    layer = brought(SeedState.BLENDING)
    with pytest.raises(LifecycleError, match=r"must be in \[0, 1\]"):
        layer.set_alpha(0, alpha)
    assert float(layer.seed(0).alpha) == 0.25


@pytest.mark.parametrize("state", [s for s in ALL if s is not SeedState.BLENDING])
def test_only_a_blending_seed_has_alpha(state: SeedState) -> None:
    with pytest.raises(LifecycleError, match="only a blending seed has alpha"):
        brought(state).set_alpha(0, 0.5)


@pytest.mark.parametrize("state", PATH[:4])
def test_unloading_gives_the_host_back_and_the_slot_after_its_rest(state: SeedState) -> None:
    layer, x = brought(state), torch.randn(3, 6)
    layer.unload(0)
    assert torch.equal(layer(x), layer.host(x))
    assert layer.grown_parameters == 0
    assert not layer.is_grown
    assert layer.available_seeds == [1]
    with pytest.raises(LifecycleError, match="culled and has no kernel"):
        layer.seed(0).as_kernel()
    layer.advance(0, SeedState.DORMANT)
    assert layer.available_seeds == [0, 1]
    grow(layer, 0, SeedState.HOLDING)


def test_a_fossil_stays_and_its_slot_grows_again() -> None:
    layer, x = brought(SeedState.FOSSILIZED), torch.randn(3, 6)
    first = layer.contributions()[0].kernel
    once = layer.grown_parameters
    layer.advance(0, SeedState.DORMANT)
    assert layer.available_seeds == [0, 1]
    assert torch.equal(layer(x), layer.host(x) + first(x))
    grow(layer, 0, SeedState.BLENDING, seed=7)
    second = layer.seed(0).as_kernel().module
    expected = layer.host(x) + first(x) + 0.25 * second(x)
    assert torch.equal(layer(x), expected)
    assert layer.grown_parameters == 2 * once
    layer.unload(0)
    assert torch.equal(layer(x), layer.host(x) + first(x))
    assert layer.is_grown


def test_seeds_add_up() -> None:
    layer, x = fresh(3), torch.randn(3, 6)
    for seed_idx, state in enumerate((SeedState.HOLDING, SeedState.TRAINING, SeedState.BLENDING)):
        grow(layer, seed_idx, state, seed=seed_idx)
    zero, _, two = (layer.seed(i).as_kernel().module for i in range(3))
    assert torch.equal(layer(x), layer.host(x) + zero(x) + 0.25 * two(x))
    assert [part.kernel for part in layer.contributions()] == [zero, two]


def test_a_kernel_takes_on_the_layers_mode() -> None:
    layer = fresh().eval()
    module = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).train()
    layer.load_kernel(0, module)
    assert not module.training
    layer.train()
    assert module.training
