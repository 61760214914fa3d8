"""From a request to a loaded kernel: all of it, or nothing."""

import asyncio
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper import blueprints
from esper.contracts.errors import KernelError, NoViableSeedError
from esper.contracts.health import GraftRequest
from esper.contracts.seeds import SeedState
from esper.contracts.selection import SelectionConstraints, SelectionContext
from esper.contracts.site import Site
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import count_parameters
from esper.execution.shapes import observe_shapes
from esper.services.tamiyo.blueprint_integration import BlueprintIntegration, smallest_kernels
from esper.services.tamiyo.performance_tracker import PerformanceDelta, PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES
from esper.strategies.contextual.features import NAMES, of_seeds
from tests.unit.services.small_run import Batch, SmallRun, host, loss_fn, same, settings, teacher

BATCH: Batch = teacher(8, seed=2)
SIZE = NAMES.index("parameters")


def a_layer(
    seeds: Any = ("lowrank", "bottleneck", "gate", "glu"),
) -> tuple[nn.Module, KasminaLayer]:
    model = esper.wrap(host(), ["fc1"], list(seeds))
    layer = model.get_submodule("fc1")
    assert isinstance(layer, KasminaLayer)
    observe_shapes(model, {"fc1": layer}, loss_fn=loss_fn, batch=BATCH)
    return model, layer


def an_integration(*, strategy: str = "ucb", seed: int = 0, **rules: Any) -> BlueprintIntegration:
    constraints = SelectionConstraints(**{"min_dormant_epochs": 3, **rules})
    made = STRATEGIES.create(strategy)
    tracker = PerformanceTracker()
    selector = SeedSelector(made, tracker=tracker, seed=seed, constraints=constraints)
    return BlueprintIntegration(selector, seed=seed)


def request(budget: int = 50, epoch: int = 4) -> GraftRequest:
    return GraftRequest(
        site=Site("fc1"), epoch=epoch, urgency=1.0, kernel_budget=budget, reason="a test"
    )


def test_a_graft_is_loaded_and_the_output_is_what_it_was() -> None:
    model, layer = a_layer()
    before, random = model.eval()(BATCH[0]), torch.get_rng_state()
    integration = an_integration()
    decision, kernel = integration.graft_now(layer, request())
    assert layer.seed_states[decision.seed_idx] is SeedState.GERMINATED
    assert layer.seed(decision.seed_idx).kernel is kernel.module
    assert torch.equal(model(BATCH[0]), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert kernel.kernel_id == f"fc1:{decision.seed_idx}:{kernel.blueprint}:0"
    assert decision.blueprint == kernel.blueprint == layer.seed_blueprints[decision.seed_idx]
    assert kernel.cost is not None
    assert kernel.cost.parameters == layer.grown_parameters <= 50
    assert kernel.cost.latency_ms is not None
    assert kernel.cost.latency_ms > 0
    assert all(p.grad is None for p in kernel.module.parameters())
    with pytest.raises(esper.SelectionError, match="busy"):
        integration.selector.release("fc1", decision.seed_idx)


def test_first_weights_depend_on_the_run_seed_the_layer_and_the_number_alone() -> None:
    def weights(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        _, kernel = an_integration(strategy="fixed", seed=seed).graft_now(a_layer()[1], request())
        return dict(kernel.module.state_dict())

    assert same(weights(0, noise=1), weights(0, noise=2))
    assert not same(weights(0, noise=1), weights(1, noise=1))


def test_grafting_without_blocking_does_the_same() -> None:
    now = an_integration().graft_now(a_layer()[1], request())
    later = asyncio.run(an_integration().graft(a_layer()[1], request()))
    assert now[0] == later[0]
    assert same(dict(now[1].module.state_dict()), dict(later[1].module.state_dict()))


@pytest.mark.parametrize("strategy", ["linucb", "lin_ts", "neural"])
def test_a_strategy_that_looks_sees_how_large_each_kernel_would_be(strategy: str) -> None:
    _, layer = a_layer()
    integration, first = an_integration(strategy=strategy, min_dormant_epochs=0), dict[int, int]()
    for epoch in range(8):
        decision, kernel = integration.graft_now(layer, request(epoch=epoch))
        assert kernel.cost is not None
        size = kernel.cost.parameters
        context = SelectionContext(epoch, parameters={0: size})
        seen = decision.reason.features
        if first.setdefault(decision.seed_idx, epoch) < epoch:  # a first try looks at nothing
            assert seen[SIZE:] == of_seeds(context, [0])[0][SIZE:]
            assert seen[SIZE] != 0
            assert seen[SIZE + 1] == 0  # it is not missing
        layer.unload(decision.seed_idx)
        integration.selector.free("fc1", decision.seed_idx, epoch)
        integration.selector.performance_tracker.update_metrics_now(
            "fc1", decision.seed_idx, PerformanceDelta(reward=0.1), decision=decision
        )
    assert len(first) == 4


@pytest.mark.trains
def test_in_a_run_a_strategy_that_looks_sees_health_and_size() -> None:
    config = settings(strategy="linucb", constraints={"min_dormant_epochs": 0}, budget=2000)
    run = SmallRun(config=config, layers=("fc1",)).run(16)
    looked = [data["features"] for data in run.facts("decision") if data["features"]]
    assert looked
    for seen in looked:
        told = dict(zip(NAMES, seen, strict=True))
        assert told["parameters"] != 0
        assert [told[f"{name} missing"] for name in ("parameters", "urgency", "input_rms")] == [
            0, 0, 0
        ]  # fmt: skip


def test_a_size_is_known_without_building() -> None:
    _, layer = a_layer()
    assert layer.spec is not None
    for name in layer.seed_blueprints:
        for budget in (40, 50, 77):
            built = blueprints.build(name, layer.spec, budget=budget, seed=0)
            size = blueprints.size_within(name, layer.spec, budget=budget)
            assert size == count_parameters(built) <= budget
        with pytest.raises(KernelError, match="too small"):
            blueprints.size_within(name, layer.spec, budget=3)


def test_a_refusal_names_what_stands_in_the_way_of_each_seed() -> None:
    _, layer = a_layer(["glu", "depthwise", "gate", "glu"])
    layer.seed(3).blueprint = ""
    integration = an_integration()
    layer.load_kernel(0, nn.Linear(6, 4))
    with pytest.raises(NoViableSeedError) as refused:
        integration.graft_now(layer, request(budget=5))
    text = str(refused.value)
    assert "seed 0: germinated" in text
    assert "seed 1: blueprint 'depthwise' is for" in text
    assert "seed 2: gate needs" in text
    assert "seed 3: no blueprint is bound to it" in text
    assert "wait for a graft to end or raise the budget" in text
    assert integration.selector.performance_tracker.layer_names == []


def test_a_kernel_that_does_not_load_frees_its_seed_and_is_recorded() -> None:
    class Stubborn(nn.Linear):
        """A host whose shape was observed wrongly: kernels made for it do not fit."""

    model, layer = a_layer(["glu"])
    layer.host = Stubborn(6, 5)  # since then the layer writes one feature more
    before = {name: value.clone() for name, value in model.state_dict().items()}
    integration = an_integration()
    with pytest.raises(KernelError, match="maps"):
        integration.graft_now(layer, request(epoch=4))
    assert same(dict(model.state_dict()), before)
    assert layer.seed_states == (SeedState.DORMANT,)
    metrics = integration.selector.performance_tracker.get_layer_metrics("fc1")[0]
    assert (metrics.failed_attempts, metrics.total_outcomes) == (1, 1)
    layer.host = nn.Linear(6, 4)
    decision, _ = integration.graft_now(layer, request(epoch=7))  # once it has rested
    assert decision.reason.fallback is False


def test_a_seed_that_rests_is_woken_if_the_selector_overrides_its_cooldown() -> None:
    _, layer = a_layer(["glu"])
    integration = an_integration(min_dormant_epochs=10)
    decision, _ = integration.graft_now(layer, request(epoch=1))
    layer.unload(decision.seed_idx)
    integration.selector.free("fc1", 0, 2)
    again, _ = integration.graft_now(layer, request(epoch=3))
    assert again.reason.fallback
    assert layer.seed_states == (SeedState.GERMINATED,)
    strict = an_integration(min_dormant_epochs=10, fallback_to_zero=False)
    _, other = a_layer(["glu"])
    strict.graft_now(other, request(epoch=1))
    other.unload(0)
    strict.selector.free("fc1", 0, 2)
    with pytest.raises(NoViableSeedError, match="cools down until epoch 12"):
        strict.graft_now(other, request(epoch=3))
    assert other.seed_states == (SeedState.CULLED,)


def test_a_layer_whose_shapes_are_not_known_is_an_error() -> None:
    layer = KasminaLayer(nn.Linear(6, 4), name="fc1", seeds=["glu"])
    with pytest.raises(KernelError, match="shapes of layer 'fc1' are not known"):
        an_integration().graft_now(layer, request())


def test_sizes_are_those_of_the_blueprints_that_fit() -> None:
    _, layer = a_layer(["lowrank", "depthwise", "scale", "lowrank"])
    # lowrank of rank 1: 6 + 4 factors; depthwise wants a convolution, scale 6 = 4 features
    (smallest,) = smallest_kernels(layer).values()
    assert smallest == 10
