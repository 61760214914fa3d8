"""Attribution against numbers worked out by hand, and statistics of each path's own."""

import copy
import statistics
from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.passes.counterfactual import (
    Effect,
    counterfactual,
    counterfactuals,
    evaluate,
    leave_one_out,
)
from esper.execution.surgery import kasmina_layers, wrap
from tests.unit.execution.models import Noisy, batches, grow, losses, wrapped


def constant(value: float) -> nn.Linear:
    """A kernel that adds the same number everywhere."""
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(value)
    return module


def by_hand(state: SeedState) -> tuple[nn.Module, KasminaLayer]:
    """Host 0 * x, kernel + 1: the model says 0 without the seed and 1 with it."""
    host = constant(0.0)
    model = wrap(nn.Sequential(host), ["0"], ["lowrank", "lowrank"])
    layer = kasmina_layers(model)["0"]
    layer.load_kernel(0, constant(1.0))
    for step in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING, SeedState.FOSSILIZED):
        if layer.seed_states[0] is state:
            break
        layer.advance(0, step)
    return model, layer


def squared(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = (model(batch[0]) - batch[1]).square().squeeze(1)
    return found


TARGETS = [2.0, 0.5, 0.0, 1.0, 3.0]
HOLDOUT = [
    (torch.ones(3, 1), torch.tensor(TARGETS[:3]).unsqueeze(1)),
    (torch.ones(2, 1), torch.tensor(TARGETS[3:]).unsqueeze(1)),
]


@pytest.mark.parametrize("state", [SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING])
def test_gain_and_paired_standard_error_by_hand(state: SeedState) -> None:
    model, layer = by_hand(state)
    effect = counterfactual(model, layer, 0, loss_fn=squared, holdout=HOLDOUT)
    # t^2 without the seed, (1 - t)^2 with it: the difference is 2 t - 1.
    differences = [2 * t - 1 for t in TARGETS]
    assert effect.gain == pytest.approx(statistics.mean(differences))
    assert effect.stderr == pytest.approx(statistics.stdev(differences) / sqrt(5))
    assert effect.loss_off == pytest.approx(statistics.mean(t * t for t in TARGETS))
    assert effect.loss_on == pytest.approx(statistics.mean((1 - t) ** 2 for t in TARGETS))
    assert effect.examples == 5


def test_one_example_has_no_standard_error() -> None:
    model, layer = by_hand(SeedState.TRAINING)
    one = [(torch.ones(1, 1), torch.zeros(1, 1))]
    effect = counterfactual(model, layer, 0, loss_fn=squared, holdout=one)
    assert (effect.gain, effect.stderr) == (-1.0, float("inf"))


def test_the_other_seeds_stay_as_they_are() -> None:
    model, layer = by_hand(SeedState.BLENDING)
    layer.load_kernel(1, constant(4.0))
    layer.advance(1, SeedState.TRAINING)
    layer.advance(1, SeedState.BLENDING)
    layer.set_alpha(1, 0.5)
    effect = counterfactual(model, layer, 0, loss_fn=squared, holdout=HOLDOUT)
    assert effect.loss_off == pytest.approx(statistics.mean((2 - t) ** 2 for t in TARGETS))
    assert effect.loss_on == pytest.approx(statistics.mean((3 - t) ** 2 for t in TARGETS))


# --- batch-norm statistics ------------------------------------------------------------------------


def shifted(state: SeedState = SeedState.HOLDING) -> tuple[nn.Module, KasminaLayer]:
    """A seed that only shifts what a batch norm then centres: it can have no effect."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    layer = wrapped(model, "0", 1, torch.randn(4, 6))
    module = nn.Linear(6, 4)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(5.0)
    layer.load_kernel(0, module)
    layer.advance(0, SeedState.TRAINING)
    if state is not SeedState.TRAINING:
        layer.advance(0, SeedState.BLENDING)
        layer.advance(0, SeedState.HOLDING)
    for batch in batches(50):  # the statistics that the model carries are those of one path
        model(batch[0])
    return model, layer


@pytest.mark.parametrize("state", [SeedState.TRAINING, SeedState.HOLDING])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_estimated_for_each_path(state: SeedState, *, training: bool) -> None:
    model, layer = shifted(state)
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    holdout = batches(4, 64, seed=1)
    as_is = counterfactual(model, layer, 0, loss_fn=losses, holdout=holdout)
    fair = counterfactual(
        model, layer, 0, loss_fn=losses, holdout=holdout, calibration=batches(20, seed=2)
    )
    assert abs(as_is.gain) > 0.5  # flattering whichever path the model trained on
    assert fair.gain == pytest.approx(0.0, abs=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.momentum, norm.training) == (0.1, training)


def test_statistics_are_the_plain_average_over_the_calibration() -> None:
    model, layer = shifted()
    calibration = batches(5, seed=2)
    seen: list[Tensor] = []

    def spy(model: nn.Module, batch: Any) -> Tensor:
        found = losses(model, batch)
        norm = model.get_submodule("1")
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        if not norm.training:
            seen.append(norm.running_mean.clone())
        return found

    counterfactual(
        model, layer, 0, loss_fn=spy, holdout=batches(1, seed=1), calibration=calibration
    )
    with torch.no_grad():
        host = torch.stack([layer.host(x).mean(dim=0) for x, _ in calibration]).mean(dim=0)
    off, on = seen
    assert torch.allclose(off, host, atol=1e-5)
    assert torch.allclose(on, host + 5.0, atol=1e-5)


def test_a_frozen_batch_norm_keeps_what_it_has() -> None:
    model, layer = shifted()
    model.get_submodule("1").eval()
    arguments: dict[str, Any] = {"loss_fn": losses, "holdout": batches(2, seed=1)}
    as_is = counterfactual(model, layer, 0, **arguments)
    assert counterfactual(model, layer, 0, **arguments, calibration=batches(5)) == as_is


def test_instance_norm_is_left_alone() -> None:
    """Its cumulative average does not exist: reset statistics would stay reset."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    model = nn.Sequential(nn.Conv1d(1, 3, 3), norm, nn.Flatten(), nn.Linear(12, 3)).train()
    layer = wrapped(model, "0", 1, torch.randn(4, 1, 6))
    grow(layer, 0, SeedState.HOLDING)
    images = [(x.unsqueeze(1), y) for x, y in batches(3)]
    for x, _ in images:
        model(x)
    arguments: dict[str, Any] = {"loss_fn": losses, "holdout": images}
    as_is = counterfactual(model, layer, 0, **arguments)
    assert counterfactual(model, layer, 0, **arguments, calibration=images) == as_is


# --- held-out data --------------------------------------------------------------------------------


def data(**settings: Any) -> "DataLoader[tuple[Tensor, ...]]":
    x, y = batches(1, 60, seed=3)[0]
    return DataLoader(TensorDataset(x, y), batch_size=16, **settings)


def sampled(generator: torch.Generator | None) -> "DataLoader[tuple[Tensor, ...]]":
    x, y = batches(1, 60, seed=3)[0]
    sampler = RandomSampler(TensorDataset(x, y), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=16, sampler=sampler)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("make", ["shuffle", "sampler"])
def test_a_shuffling_loader_is_still_paired_and_not_advanced(make: str, *, own: bool) -> None:
    torch.manual_seed(0)
    model = Noisy()
    layer = wrapped(model, "fc2", 1, torch.randn(4, 6))
    grow(layer, 0, SeedState.HOLDING)
    generator = torch.Generator().manual_seed(7) if own else None
    loader = data(shuffle=True, generator=generator) if make == "shuffle" else sampled(generator)
    before = torch.get_rng_state(), None if generator is None else generator.get_state()
    shuffled = counterfactual(model, layer, 0, loss_fn=losses, holdout=loader)
    in_order = counterfactual(model, layer, 0, loss_fn=losses, holdout=data())
    assert shuffled.gain == pytest.approx(in_order.gain, abs=1e-6)
    assert shuffled.stderr == pytest.approx(in_order.stderr, rel=1e-4)
    evaluate(model, losses, loader)
    assert torch.equal(before[0], torch.get_rng_state())
    if generator is not None and before[1] is not None:
        assert torch.equal(before[1], generator.get_state())


def test_no_batches() -> None:
    model, layer = by_hand(SeedState.TRAINING)
    with pytest.raises(ConfigError, match="holdout has no batches"):
        counterfactual(model, layer, 0, loss_fn=squared, holdout=[])
    spent = iter(HOLDOUT)
    assert counterfactual(model, layer, 0, loss_fn=squared, holdout=spent).examples == 5
    with pytest.raises(ConfigError, match="not a spent iterator"):
        counterfactual(model, layer, 0, loss_fn=squared, holdout=spent)
    assert not layer.is_grown


class Shrinking:
    """Gives less each time."""

    def __init__(self) -> None:
        self.left = 2

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        return iter(HOLDOUT[: self.left + 1])


class Restless:
    """Other examples at every reading, drawn where nobody can put the state back."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(2):
            targets = torch.from_numpy(self.generator.normal(size=(4, 1))).float()
            yield torch.ones(4, 1), targets


@pytest.mark.parametrize("holdout", [Shrinking(), Restless()])
def test_other_examples_each_time_are_compared_with_themselves(holdout: Any) -> None:
    model, layer = by_hand(SeedState.TRAINING)
    seen: list[Tensor] = []

    def spy(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch[1])
        return squared(model, batch)

    effect = counterfactual(model, layer, 0, loss_fn=spy, holdout=holdout)
    targets = torch.cat(seen[::2]).squeeze(1)
    assert all(a is b for a, b in zip(seen[::2], seen[1::2], strict=True))
    # t^2 without the seed, (1 - t)^2 with it: the difference is 2 t - 1.
    assert effect.gain == pytest.approx(float((2 * targets - 1).mean()), abs=1e-6)
    assert effect.stderr == pytest.approx(float((2 * targets).std()) / sqrt(len(targets)), rel=1e-5)


def test_both_passes_over_a_batch_draw_the_same_numbers() -> None:
    model, layer = by_hand(SeedState.TRAINING)
    drawn: list[float] = []

    def noisy(model: nn.Module, batch: Any) -> Tensor:
        noise = torch.randn(())
        drawn.append(float(noise))
        return squared(model, batch) + 100 * noise

    effect = counterfactual(model, layer, 0, loss_fn=noisy, holdout=HOLDOUT)
    assert effect.gain == pytest.approx(statistics.mean(2 * t - 1 for t in TARGETS), abs=1e-4)
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3] != drawn[0]


def test_other_losses_each_time_cannot_be_compared() -> None:
    model, layer = by_hand(SeedState.TRAINING)
    calls: list[int] = []

    def fewer(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return squared(model, batch)[len(calls) % 2 :]

    with pytest.raises(ConfigError, match=r"gave 3 losses in one pass and 5 in another"):
        counterfactual(model, layer, 0, loss_fn=fewer, holdout=HOLDOUT)


@pytest.mark.parametrize("calibrated", [True, False])
def test_seeds_beside_one_another_are_judged_as_by_themselves(*, calibrated: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Noisy()).train()
    model(batches(1)[0][0])
    wrap(model, ["0.fc1", "0.fc2"], ["lowrank", "lowrank"])
    layers = kasmina_layers(model)
    seeds = [(layers["0.fc1"], 0), (layers["0.fc1"], 1), (layers["0.fc2"], 1)]
    for layer, seed_idx in seeds:
        layer.load_kernel(seed_idx, nn.Linear(6 if layer is layers["0.fc1"] else 8, 8))
        layer.advance(seed_idx, SeedState.TRAINING)
    passes: list[int] = []

    def counted(model: nn.Module, batch: Any) -> Tensor:
        passes.append(1)
        # What is drawn differs from batch to batch, and not from pass to pass.
        return losses(model, batch) * (1 + 0.1 * torch.rand(()))

    given = (counted, batches(3, seed=1), batches(2, seed=2) * calibrated)
    state = torch.get_rng_state()
    together = counterfactuals(model, seeds, *given)
    assert len(passes) == (len(seeds) + 1) * (3 + 2 * calibrated)
    alone: list[Effect] = []
    for seed in seeds:
        torch.set_rng_state(state)
        alone += counterfactuals(model, [seed], *given)
    assert together == alone
    assert len({effect.gain for effect in together}) == len(seeds)


def test_evaluate_is_the_mean_over_examples() -> None:
    model, _ = by_hand(SeedState.TRAINING)
    assert evaluate(model, squared, HOLDOUT) == pytest.approx(
        statistics.mean(t * t for t in TARGETS)
    )


def test_several_at_once_are_judged_beside_each_other() -> None:
    model, layer = by_hand(SeedState.HOLDING)
    layer.load_kernel(1, constant(4.0))
    for state in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING):
        layer.advance(1, state)
    given: dict[str, Any] = {"loss_fn": squared, "holdout": HOLDOUT}
    effects, together = leave_one_out(model, [(layer, 0), (layer, 1)], **given)
    assert effects == [counterfactual(model, layer, index, **given) for index in (0, 1)]
    assert together.loss_on == effects[0].loss_on
    assert together.loss_off == pytest.approx(together.loss_on + together.gain)
    with layer.silenced():
        assert evaluate(model, squared, HOLDOUT) == pytest.approx(together.loss_off)
