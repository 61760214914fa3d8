"""Parts of ``python -m benchmarks growth``: pairs, goals, networks, counting, file of outcomes."""

import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.growth.arms.anew import anew
from benchmarks.growth.arms.counting import of_an_epoch
from benchmarks.growth.arms.outcome import Outcome
from benchmarks.growth.arms.widths import gated, nearest_width, static, static_gated
from benchmarks.growth.goals import goals
from benchmarks.growth.kept import Kept
from benchmarks.growth.pairs import difference, share_to_reach
from esper.contracts.seeds import LayerSpec, SeedState
from esper.execution.harden import harden
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Kernel, Recipe, count_parameters
from esper.execution.surgery import kasmina_layers, wrap
from esper.studies.trained.counting import Counting
from esper.tasks import TASKS

SPEC = LayerSpec(kind="features", in_size=6, out_size=3)


def outcome(accuracy: float = 0.9, *, flops: int = 100, loss: float = 0.5) -> Outcome:
    return Outcome(
        parameters=10,
        epochs=4,
        accuracy=accuracy,
        loss=loss,
        flops=flops,
        seconds=1.0,
        curve=(0.2, 0.6, 0.8, accuracy),
        spent=tuple(flops * n // 4 for n in range(1, 5)),
    )


# --- pairs and goals ------------------------------------------------------------------------------


def test_a_difference_is_paired() -> None:
    found = difference([3.0, 13.0, 23.0], [2.0, 12.0, 22.0])
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)  # although the values spread


def test_the_interval_holds_the_mean_and_is_that_of_the_pairs() -> None:
    found = difference([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5)
    assert found.low == pytest.approx(1.8)
    assert found.high == pytest.approx(4.2)
    assert str(found) == "+3.00 [+1.80, +4.20]"
    assert str(difference([1.0], [0.5])) == "+0.50 (one pair)"


def test_compute_to_equal_accuracy_is_the_first_epoch_that_has_it() -> None:
    static = outcome(0.75, flops=200)
    assert share_to_reach(outcome(flops=100), static) == 75 / 200
    assert share_to_reach(static, static) == 0.75  # its third epoch was better than its last
    assert math.isinf(share_to_reach(static, outcome(0.99)))


def test_goals_are_met_missed_or_open() -> None:
    better = {
        "grown": outcome(0.95, flops=60, loss=0.3),
        "static": outcome(0.90),
        "grown, from scratch": outcome(0.94),
    }
    worse = {**better, "grown": outcome(0.85, flops=140, loss=0.7)}
    states = {
        goal.measure: goal.state
        for goal in goals({"letter": [better] * 2, "digits": [better] * 2, "kjv": [worse] * 2})
    }
    assert states["letter: grown less static, points"] == "met"
    assert states["mnist1d: grown less static, points"] == "open"
    assert states["grown less static: letter, digits, mnist1d"] == "met"
    assert states["kjv: grown less static, nats of loss won"] == "missed"
    assert states["letter: compute of the grown run ÷ static"] == "met"
    assert states["kjv: compute of the grown run ÷ static"] == "missed"
    assert states["compute to the static network's accuracy ÷ static"] == "met"
    assert states["grown less its architecture from scratch"] == "open"


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parameters", "width"), [(0, 1), (10, 1), (14, 1), (16, 2), (95, 9)])
def test_the_nearest_width_may_be_on_either_side(parameters: int, width: int) -> None:
    assert nearest_width(lambda w: 10 * w, parameters) == width


@pytest.mark.parametrize("name", ["letter", "digits", "mnist1d", "mnist5k", "kjv", "resmlp"])
def test_static_networks_have_the_size_asked_for(name: str) -> None:
    task = TASKS.create(name)
    batch = next(iter(task.train_batches(0, 0)))
    size = 3 * count_parameters(task.host(0))
    for model in (static(task, 1, size), static_gated(task, 1, size)):
        assert model is not None
        assert abs(count_parameters(model) - size) < 0.2 * size  # half a step of width
        assert task.loss_fn(model, batch).isfinite().all()


@pytest.mark.parametrize(("name", "units"), [("digits", 3), ("kjv", 2), ("resmlp", 2)])
def test_hidden_layers_are_gated_and_drawn_from_the_seed(name: str, units: int) -> None:
    task = TASKS.create(name)
    first, again = (static_gated(task, 3, 5000) for _ in range(2))
    assert isinstance(first, GraphModule)
    assert again is not None
    targets = [node.target for node in first.graph.nodes]
    assert targets.count(F.glu) == units
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_gated_layer_multiplies_by_the_sigmoid_of_its_second_half() -> None:
    model = gated(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    assert model is not None
    x_BF = torch.randn(5, 4)
    value, gate = nn.functional.linear(x_BF, *model.parameters()).chunk(2, dim=1)
    torch.testing.assert_close(model(x_BF), value * gate.sigmoid())


def test_a_host_without_an_activation_behind_a_layer_is_not_gated() -> None:
    assert gated(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())) is None


# --- the grown architecture from scratch ----------------------------------------------------------


def host(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(fc1=nn.Linear(6, 4), act=nn.ReLU(), fc2=nn.Linear(4, 3)))


def grown_and_trained() -> nn.Module:
    """Whole host as one layer: an absorbed kernel, one that is blending, one in isolation."""
    model = wrap(host(), [""], ["bottleneck", "glu", "lowrank"])
    assert isinstance(model, KasminaLayer)
    for index, blueprint in enumerate(model.seed_blueprints):
        recipe = Recipe(blueprint=blueprint, spec=SPEC, budget=60, seed=index)
        kernel = Kernel(module=recipe.build(), kernel_id=f"k{index}", recipe=recipe)
        model.load_kernel(index, kernel)
        model.advance(index, SeedState.TRAINING)
    for index, last in ((0, SeedState.FOSSILIZED), (1, SeedState.BLENDING)):
        model.advance(index, SeedState.BLENDING)
        if last is SeedState.FOSSILIZED:
            model.advance(index, SeedState.HOLDING)
            model.advance(index, SeedState.FOSSILIZED)
    model.set_alpha(1, 0.25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


def test_the_architecture_from_scratch_equals_the_grown_one_in_topology_alone() -> None:
    model = grown_and_trained()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    fresh, plain = anew(model, host(), seed=5), harden(model)
    assert {k: v.shape for k, v in fresh.named_parameters()} == {
        k: v.shape for k, v in plain.named_parameters()
    }
    assert not kasmina_layers(fresh)
    x_BF = torch.randn(5, 6)
    # Kernels are silent at birth, and the host has its initial weights.
    torch.testing.assert_close(fresh(x_BF), host()(x_BF), rtol=0, atol=0)
    assert not torch.equal(plain(x_BF), fresh(x_BF))
    assert [float(b) for name, b in fresh.named_buffers() if "alpha" in name] == [1.0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name])


def test_what_was_widened_is_drawn_anew() -> None:
    wide = nn.Sequential(OrderedDict(fc1=nn.Linear(6, 9), act=nn.ReLU(), fc2=nn.Linear(9, 3)))
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.fill_(7.0)
    fresh, again = anew(wide, host(), seed=5), anew(wide, host(), seed=5)
    assert torch.equal(fresh.fc2.bias, host().fc2.bias)  # type: ignore[union-attr, arg-type]
    for one, other in zip(fresh.parameters(), again.parameters(), strict=True):
        assert not (one == 7.0).any()
        assert torch.equal(one, other)


def test_a_kernel_without_a_recipe_is_named() -> None:
    model = wrap(nn.Sequential(nn.Linear(6, 3)), ["0"], ["glu"])
    layer = kasmina_layers(model)["0"]
    layer.load_kernel(0, nn.Linear(6, 3))
    for state in (SeedState.TRAINING, SeedState.BLENDING):
        layer.advance(0, state)
    with pytest.raises(ValueError, match="kernel '0:0:Linear' has no recipe"):
        anew(model, nn.Sequential(nn.Linear(6, 3)), seed=0)


# --- counting -------------------------------------------------------------------------------------


def test_operations_of_a_known_network_are_those_by_hand() -> None:
    model, x_BF = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(11, 5)
    with Counting() as counting:
        model(x_BF).sum().backward()
    first, second = 2 * 11 * 5 * 7, 2 * 11 * 7 * 3
    assert counting.flops == 2 * first + 3 * second  # no gradient goes to the input


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_an_epoch_from_single_steps_equals_a_full_count(name: str) -> None:
    task = TASKS.create(name)
    model = task.host(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = of_an_epoch(task, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with FlopCounterMode(display=False) as full:
        for batch in task.train_batches(0, 0):
            task.loss_fn(model, batch).mean().backward()  # type: ignore[no-untyped-call]
    assert found == full.get_total_flops()


# --- the file -------------------------------------------------------------------------------------


def test_outcomes_are_kept_and_those_of_other_sources_are_not(tmp_path: Path) -> None:
    path = tmp_path / "growth.json"
    arms = {"grown": outcome(), "static": outcome(0.8)}
    Kept(path).put("letter, seed 0", arms)
    again = Kept(path)
    assert again.get("letter, seed 0") == arms
    assert again.get("letter, seed 1") is None
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(again.fingerprint, "0" * 16), encoding="utf-8")
    other = Kept(path)
    assert other.get("letter, seed 0") is None
    assert other.left_out == 1
