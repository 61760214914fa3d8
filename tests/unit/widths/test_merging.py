"""What an optimizer knows of units, before they are merged and behind it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop

import esper
from esper.contracts.seeds import SeedState
from esper.execution.training.trainers import Trainers
from tests.unit.widths.grown import grow, wake, widths
from tests.unit.widths.test_found import ROWS, residual_linear

HOST_STEPS, KERNEL_STEPS = 5, 2

Make = Callable[[Any], Optimizer]


class Run:
    """A model whose host was trained for five steps, and its kernel, ``fc1``'s, for two of them."""

    def __init__(self, make: Make, model: nn.Module | None = None, *, freeze: str = "") -> None:
        torch.manual_seed(0)
        self.model: Any = model or nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
        esper.wrap(self.model, widen="auto", example=ROWS)
        (self.width,) = widths(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not (freeze and name.startswith(freeze)))
        self.optimizer = make([p for p in self.model.parameters() if p.requires_grad])
        self.trainers = Trainers(self.model, {self.width.name: self.width}, self.optimizer)
        self.step(HOST_STEPS - KERNEL_STEPS)
        self.kernel: Any = grow(self.width)
        wake(self.kernel)
        self.trainers.adopt(self.width, list(self.kernel.named_parameters()), source=None)
        self.width.set_alpha(0, 1.0)
        self.step(KERNEL_STEPS)
        for state in (SeedState.HOLDING, SeedState.FOSSILIZED):
            self.width.advance(0, state)

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(ROWS).square().mean().backward()
            self.optimizer.step()

    def state(self, parameter: Tensor, key: str) -> Tensor:
        value = self.optimizer.state[parameter][key]
        assert isinstance(value, Tensor)
        return value.clone()

    def held(self) -> list[int]:
        return [id(p) for group in self.optimizer.param_groups for p in group["params"]]

    def everything(self) -> list[Tensor]:
        """Parameters as a merge puts them together."""
        with torch.no_grad():
            tensors = {id(p): p.clone() for p in self.width.host_parameters()}
            for kernel in self.width.fossils:
                for join in self.width.joins(kernel):
                    tensors[id(join.host)] = join.whole(tensors[id(join.host)], join.piece)
        return list(tensors.values())


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_moments_are_read_as_before(kind: Any, *, fused: bool | None) -> None:
    run = Run(lambda ps: kind(ps, lr=0.01, betas=(0.9, 0.99), amsgrad=True, fused=fused))
    producer, consumer = run.model[0], run.model[2]
    rows, columns = run.kernel.producer0, run.kernel.consumer1
    before = {
        (key, part): (run.state(host.weight, key), run.state(piece.weight, key))
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        for part, host, piece in (("rows", producer, rows), ("columns", consumer, columns))
    }
    run.trainers.merge(run.width)
    for (key, part), (host, piece) in before.items():
        beta = 0.9 if key == "exp_avg" else 0.99
        scaled = piece * (1 - beta**HOST_STEPS) / (1 - beta**KERNEL_STEPS)
        whole = torch.cat([host, scaled], 0 if part == "rows" else 1)
        found = run.state((producer if part == "rows" else consumer).weight, key)
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=0)
    assert run.state(producer.weight, "step") == HOST_STEPS
    run.step()


def test_a_varying_momentum() -> None:
    run = Run(lambda ps: NAdam(ps, lr=0.01))
    producer, rows = run.model[0], run.kernel.producer0
    moment = run.state(rows.weight, "exp_avg")
    ours, theirs = (1 - float(run.state(p.weight, "mu_product")) for p in (producer, rows))
    run.trainers.merge(run.width)
    torch.testing.assert_close(run.state(producer.weight, "exp_avg")[6:], moment * ours / theirs)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda ps: RMSprop(ps, lr=0.01, momentum=0.9, centered=True),
        lambda ps: Adagrad(ps, lr=0.1),
        lambda ps: Adadelta(ps, lr=0.1),
        lambda ps: SGD(ps, lr=0.1),
    ],
    ids=["SGD", "RMSprop", "Adagrad", "Adadelta", "SGD without momentum"],
)
def test_the_next_step_is_the_same(make: Make) -> None:
    apart, merged = Run(make), Run(make)
    merged.trainers.merge(merged.width)
    for run in (apart, merged):
        run.step()
    for one, other in zip(apart.everything(), merged.everything(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Adam, AdamW, Adamax, NAdam])
def test_the_next_step_is_nearly_the_same(kind: Any) -> None:
    """Not quite, because a gradient counts for less after more steps."""
    apart, merged = (Run(lambda ps: kind(ps, lr=0.01, weight_decay=0.1)) for _ in range(2))
    before = apart.everything()
    merged.trainers.merge(merged.width)
    for run in (apart, merged):
        run.step()
    for old, one, other in zip(before, apart.everything(), merged.everything(), strict=True):
        step, wrong = one - old, other - one
        assert wrong.norm() < 0.3 * step.norm()


def test_the_optimizer_holds_what_the_model_has() -> None:
    run = Run(lambda ps: AdamW(ps, lr=0.01))
    before = run.held()
    assert len(before) == 7
    run.trainers.merge(run.width)
    assert run.held() == before[:4] == [id(p) for p in run.model.parameters()]
    assert list(run.optimizer.state) == list(run.model.parameters())
    assert [join.piece.shape for join in run.trainers.take_joined()] == [(2, 8), (2,), (4, 2)]


def test_rows_and_columns_of_one_layer() -> None:
    run = Run(lambda ps: AdamW(ps, lr=0.01), residual_linear())
    run.trainers.merge(run.width)
    inner: Any = run.model.inner
    assert inner.weight.shape == run.state(inner.weight, "exp_avg").shape == (8, 8)
    assert not run.state(inner.weight, "exp_avg")[6:, 6:].any()
    run.step(2)


@pytest.mark.parametrize("freeze", ["0", "2"])
def test_a_frozen_layer_stays_as_it_is(freeze: str, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(lambda ps: AdamW(ps, lr=0.01), freeze=freeze)
    for _ in range(2):
        run.trainers.merge(run.width)
    assert len(run.width.fossils) == 1
    before = run.everything()
    run.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, run.everything(), strict=True)]
    assert all(moved)  # the kernel's own rows or columns
    (record,) = caplog.records
    assert record.message == (
        "0:width: units that were kept stay parameters of their own, and go on being trained: a "
        "layer beside them is not trained"
    )


def test_state_that_is_not_understood(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(torch.optim.Rprop)
    run.trainers.merge(run.width)
    assert len(run.width.fossils) == 1
    assert caplog.messages[0].endswith("Rprop has state that cannot be widened, 'step_size'")
    run.step()


def test_a_graph_that_is_alive_and_what_hooks_do() -> None:
    run = Run(lambda ps: AdamW(ps, lr=0.01))
    weight: Any = run.model[0].weight
    seen: list[Any] = []
    weight.register_hook(lambda g: seen.append(("gradient", tuple(g.shape))))
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(("held", tuple(p.grad.shape))))
    loss = run.model(ROWS).square().mean()
    run.trainers.merge(run.width)
    run.step()
    assert seen == [("gradient", (8, 8)), ("held", (8, 8))]
    assert loss.detach() > 0


def test_gradients_gathered_over_a_merge() -> None:
    apart, merged = (Run(lambda ps: SGD(ps, lr=0.1)) for _ in range(2))
    for run in (apart, merged):
        run.optimizer.zero_grad()
        for part in torch.split(ROWS, 3):
            run.model(part).square().mean().backward()
            if run is merged:
                run.trainers.merge(run.width)
        run.optimizer.step()
    for one, other in zip(apart.everything(), merged.everything(), strict=True):
        torch.testing.assert_close(one, other)
