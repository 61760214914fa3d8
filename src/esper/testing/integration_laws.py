"""Laws of every integration. Subclass with a fixture ``train`` that runs a framework's own loop.

```python
class TestMine(IntegrationLaws):
    @pytest.fixture
    def train(self):
        return train                     # called as train(toy, folder): see `Train`
```

The framework trains ``toy.model()`` on ``toy.train``, in this order, for ``toy.epochs`` epochs,
with `adam` over all its parameters; ``toy.growth`` are the arguments of its ``Growth``.
"""
# ruff: noqa: D102 (the name of a law is what it says)

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from esper.contracts.events import Event
from esper.integrations.base import Integration
from esper.services.tamiyo.tamiyo import Tamiyo
from esper.widths.wrap import wrap

Batch = dict[str, Tensor]

BATCHES, SIZE, EPOCHS = 6, 32, 10
"""Batches of an epoch, examples of a batch, epochs of a whole run."""
CLIP, DECAY = 0.5, 0.9
"""Norm to which gradients are clipped, and decay of an average, where a toy wants them."""
MIDST = (2, 3, 4, 6)
"""Epochs after which a run is interrupted: with a kernel in isolation, and with one blending."""
WITHIN = (15, 22, 29)
"""Batches after which it is, within an epoch."""


class Net(nn.Module):
    """A small network with batch norm, which notices every pass; its loss if it gets targets."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(6, 8),
                norm=nn.BatchNorm1d(8) if norm else nn.Identity(),
                act=nn.ReLU(),
                fc2=nn.Linear(8, 3),
            )
        )

    @override
    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Any:
        """Outputs (B, 3), or a dictionary with the mean loss too."""
        outputs = self.net(inputs)
        if targets is None:
            return outputs
        return {"loss": F.mse_loss(outputs, targets), "logits": outputs}


def loss_fn(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Losses of the examples, shape (B,)."""
    return F.mse_loss(model(batch["inputs"]), batch["targets"], reduction="none").mean(dim=1)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer of a toy's run."""
    return torch.optim.Adam(model.parameters(), lr=0.02)


@final
@dataclass(frozen=True, kw_only=True)
class Toy:
    """A training that every framework can do.

    Attributes:
        epochs: Epochs to train, counted from the beginning of the run.
        batches: Batches to train, counted likewise, if the run is to end within an epoch.
        resume: Take up the run that was left in the folder; the model is a fresh one.
        accumulate: Batches whose gradients are added up before a step.
        clip: Clip gradients to the norm `CLIP`.
        bfloat16: Mixed precision.
        average: Keep an average of the weights, updated after each step with `DECAY`.
        norm: The network has batch norm, whose statistics are of one process's examples.
        decay: A scheduler, stepped after each optimizer step, multiplies the rate by this.
    """

    epochs: int = EPOCHS
    batches: int | None = None
    resume: bool = False
    accumulate: int = 1
    clip: bool = False
    bfloat16: bool = False
    average: bool = False
    decay: float = 1.0
    norm: bool = True

    def model(self) -> Net:
        """The same fresh network every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return Net(norm=self.norm)

    @property
    def train(self) -> list[Batch]:
        """Batches of an epoch."""
        return _batches(SIZE * BATCHES, seed=1)

    @property
    def examples(self) -> list[Batch]:
        """The same examples one by one."""
        return [{k: batch[k][row] for k in batch} for batch in self.train for row in range(SIZE)]

    @property
    def holdout(self) -> list[Batch]:
        """Held-out batches."""
        return _batches(SIZE * 3, seed=2)

    @property
    def growth(self) -> dict[str, Any]:
        """Arguments of ``Growth``."""
        return {
            "layers": ["net.fc1"],
            "seeds": ["lowrank", "bottleneck", "gate"],
            "loss_fn": loss_fn,
            "holdout": self.holdout,
            "scope": "toy",
            "config": {
                "growth": {
                    "budget": 2000,
                    "plateau_threshold": 1.0,
                    "probe_every": 4,
                    "train_epochs": 1,
                    "keep_stderrs": 0.0,
                },
                # Neither waits for evidence, so no choice hangs on the last digits of a loss.
                "seed_selection": {"strategy": "round_robin", "audition": "never"},
            },
        }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that ended.

    Attributes:
        tamiyo: The engine.
        model: The model.
        optimizer: Its optimizer, not in a wrapper.
        average: The average of its weights, if the toy wants one.
    """

    tamiyo: Tamiyo
    model: nn.Module
    optimizer: Any
    average: nn.Module | None = None

    def log(self) -> list[tuple[str, dict[str, Any]]]:
        """The event log."""
        return [_plain(event) for event in self.tamiyo.events()]


Train = Callable[[Toy, Path], Trained]
"""Trains in a framework; leaves in the folder a checkpoint of its own after every epoch, or the
last one, and with ``toy.resume`` goes on from it."""


class IntegrationLaws:
    """Laws of an integration: a toy's run is that of the plain loop."""

    def test_leaves_the_log_of_the_plain_loop(self, train: Train, tmp_path: Path) -> None:
        ours, theirs = train(Toy(), tmp_path), plain(Toy())
        assert_same_log(ours, theirs)
        kinds = {kind for kind, _ in ours.log()}
        assert {"decision", "outcome", "graft", "lifecycle", "health", "epoch"} <= kinds

    def test_takes_up_a_run_in_mid_graft_bit_for_bit(self, train: Train, tmp_path: Path) -> None:
        toy = Toy(decay=0.99)
        whole = train(toy, tmp_path / "whole")
        seen: set[str] = set()
        for epochs in MIDST:
            folder = tmp_path / str(epochs)
            half = train(replace(toy, epochs=epochs), folder)
            seen |= {str(s) for la in half.tamiyo.layers.values() for s in la.seed_states}
            again = train(replace(toy, resume=True), folder)
            assert_equal(again, whole)
        assert {"training", "blending"} <= seen

    def test_takes_up_a_run_within_an_epoch(self, train: Train, tmp_path: Path) -> None:
        toy = Toy(decay=0.99, norm=False)  # no checkpoint holds batches, to estimate statistics
        whole = train(toy, tmp_path / "whole")
        for batches in WITHIN:
            folder = tmp_path / str(batches)
            train(replace(toy, batches=batches), folder)
            assert_equal(train(replace(toy, resume=True), folder), whole)

    def test_accumulates_gradients(self, train: Train, tmp_path: Path) -> None:
        toy = Toy(accumulate=2)
        assert_same_log(train(toy, tmp_path), plain(toy))

    def test_clips_gradients(self, train: Train, tmp_path: Path) -> None:
        # A norm is summed in another order, which grows from the last digit on with every epoch.
        toy = Toy(clip=True, epochs=4)
        assert_same_log(train(toy, tmp_path), plain(toy), digits=1e-2)

    def test_trains_in_mixed_precision(self, train: Train, tmp_path: Path) -> None:
        toy = Toy(bfloat16=True, epochs=6)
        assert_same_log(train(toy, tmp_path), plain(toy), digits=1e-1)

    def test_an_average_of_the_weights_grows_too(self, train: Train, tmp_path: Path) -> None:
        toy = Toy(average=True)
        ours, theirs = train(toy, tmp_path), plain(toy)
        assert_same_log(ours, theirs)
        assert ours.average is not None
        assert theirs.average is not None
        averages = [dict(one.named_parameters()) for one in (ours.average, theirs.average)]
        assert averages[0].keys() == averages[1].keys()
        assert averages[0].keys() == dict(ours.model.named_parameters()).keys()
        for name, value in averages[0].items():
            torch.testing.assert_close(value, averages[1][name], rtol=1e-3, atol=1e-5)


def plain(toy: Toy) -> Trained:
    """The plain loop, with the four lines of the quick start."""
    model, given = toy.model(), toy.growth
    wrap(model, given.pop("layers"), given.pop("seeds"))
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, toy.decay)
    average = averaged(model) if toy.average else None
    tamiyo = Tamiyo(model, optimizer, scheduler=scheduler, **(given | {"loss_fn": cast(toy)}))
    for epoch in range(toy.epochs):
        model.train()
        for number, batch in enumerate(toy.train, start=1):
            loss = cast(toy)(model, batch).mean() / toy.accumulate
            torch.autograd.backward(loss)
            if number % toy.accumulate == 0:
                if toy.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update_parameters(model)
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    return Trained(tamiyo=tamiyo, model=model, optimizer=optimizer, average=inner(average))


def trained(growth: Integration, model: nn.Module, optimizer: Any, average: Any) -> Trained:
    """What an integration leaves; ``optimizer`` may be in a wrapper."""
    assert growth.tamiyo is not None
    core = getattr(optimizer, "optimizer", optimizer)
    return Trained(tamiyo=growth.tamiyo, model=model, optimizer=core, average=inner(average))


def inner(average: AveragedModel | None) -> nn.Module | None:
    """The model in an average of its weights."""
    return None if average is None else average.module


def averaged(model: nn.Module) -> AveragedModel:
    """Average of a model's weights, as the laws compare it."""

    def towards(average: Tensor, value: Tensor, _: Any) -> Tensor:
        return DECAY * average + (1 - DECAY) * value

    return AveragedModel(model, avg_fn=towards)


def cast(toy: Toy) -> Any:
    """``loss_fn``, under autocast if the toy wants it."""

    def inside(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if toy.bfloat16 else nullcontext():
            return loss_fn(model, batch)

    return inside


def assert_same_log(ours: Trained, theirs: Trained, *, digits: float = 1e-3) -> None:
    """Assert that two runs did the same, in the same order; numbers agree to some digits."""
    one, two = ours.log(), theirs.log()
    assert [(kind, _words(data)) for kind, data in one] == [(k, _words(d)) for k, d in two]
    for (_, a), (_, b) in zip(one, two, strict=True):
        for key in a:
            assert _close(a[key], b[key], digits), (key, a, b)


def assert_equal(ours: Trained, theirs: Trained) -> None:
    """Assert that weights, optimizers and logs are equal to the last bit."""
    states = [deepcopy(one.model.state_dict()) for one in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    kept = [one.optimizer.state_dict()["state"] for one in (ours, theirs)]
    assert kept[0].keys() == kept[1].keys()
    for number, state in kept[0].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(kept[1][number][key]))
    # What was told before the interruption is in the log of the process that told it.
    told = ours.log()
    assert told == [pair for pair in theirs.log() if pair in told]
    assert [pair for pair in told if pair[0] == "epoch"][-1] == theirs.log()[-1]


def _batches(examples: int, *, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 6, generator=generator)
    mixing = torch.randn(6, 3, generator=torch.Generator().manual_seed(99))
    targets = (inputs @ mixing).abs() + torch.sin(2 * inputs[:, :3])
    pairs = zip(torch.split(inputs, SIZE), torch.split(targets, SIZE), strict=True)
    return [{"inputs": x, "targets": y} for x, y in pairs]


def _plain(event: Event) -> tuple[str, dict[str, Any]]:
    own: set[str] = (
        {"model"} if event.kind == "run" else set()
    )  # some frameworks want a class of theirs
    return event.kind, {key: value for key, value in event.data.items() if key not in own}


def _words(data: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of an event without what has digits: numbers, and sentences with numbers in them."""
    sentences = {"why", "reason"}
    return {k: type(v) if _has_digits(v) or k in sentences else v for k, v in data.items()}


def _has_digits(value: Any) -> bool:
    return isinstance(value, float | dict | list)


def _close(a: Any, b: Any, digits: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return isclose(a, b, rel_tol=digits, abs_tol=digits)
    return True
