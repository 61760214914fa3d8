"""Trial of a training loop: run plainly, and again with the lines that Esper adds."""

import random  # noqa: TID251 (global random states are what loops draw from)
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam
from typing_extensions import override

import esper
from esper.execution.passes.batches import copied
from esper.execution.passes.isolation import example_losses
from esper.services.tamiyo.report import Verdict
from esper.services.tamiyo.settings import config_from
from tests.unit.services.small_run import Batch, teacher

SOON: dict[str, Any] = {
    "warmup_epochs": 0,
    "train_epochs": 1,
    "plateau_threshold": 1000.0,
    "keep_stderrs": 0.0,
    "probe_every": 3,
}
"""Growth settings with which a kernel is chosen after two epochs and judged after four."""

EPOCHS = 4


def split(part: Batch, size: int) -> list[Batch]:
    return list(zip(torch.split(part[0], size), torch.split(part[1], size), strict=True))


TRAIN = split(teacher(64, seed=1), 16)
HOLDOUT = split(teacher(48, seed=2), 24)


class Net(nn.Module):
    """A small network, (B, 6) to (B, 3)."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.between = nn.Sequential(*between)
        self.fc2 = nn.Linear(8, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.between(torch.relu(self.fc1(x))))
        return y


def loss_fn(model: nn.Module, batch: Any) -> Any:
    """Losses (B,); ``Any``, because PyTorch's ``backward`` has no types."""
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return Adam(model.parameters(), lr=0.02)


@final
class Trial:
    """One run of a loop: grown, or its control, for which `wrap` and `tamiyo` do nothing.

    Attributes:
        values: Of the model's parameters, after each batch until a kernel is blended in.
        isolated: Batches after which a kernel was in isolation.
    """

    epochs = range(EPOCHS)

    def __init__(self, *, grown: bool) -> None:
        self.grown = grown
        self.engines: list[Engine] = []

    def seed(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002

    def wrap(
        self, model: nn.Module, layers: Sequence[str] = ("fc1",), seeds: Any = None, **options: Any
    ) -> nn.Module:
        return esper.wrap(model, layers, seeds, **options) if self.grown else model

    def tamiyo(self, model: nn.Module, optimizer: Any, **options: Any) -> "Engine":
        growth = {**SOON, **options.pop("growth", {})}
        given = {
            "loss_fn": loss_fn,
            "holdout": HOLDOUT,
            "config": config_from({"growth": growth}),
            **options,
        }
        made = esper.Tamiyo(model, optimizer, **given) if self.grown else None
        self.engines.append(Engine(model, made, given))
        return self.engines[-1]

    def train(
        self,
        model: nn.Module,
        layers: Sequence[str] = ("fc1",),
        *,
        make: Callable[[nn.Module], Any] = adam,
        batches: Iterable[Any] = TRAIN,
        seeds: Any = None,
        **options: Any,
    ) -> "Engine":
        """The loop of README, where the loop is not what is tried; wraps ``layers`` if any."""
        if layers:
            self.wrap(model, layers, seeds)
        optimizer = make(model)
        tamiyo = self.tamiyo(model, optimizer, **options)
        loss_of = options.get("loss_fn", loss_fn)
        for epoch in self.epochs:
            model.train()
            for batch in batches:
                optimizer.zero_grad()
                loss_of(model, copied(batch, tensors=True)).mean().backward()
                optimizer.step()
                tamiyo.on_batch_end(batch)
            tamiyo.on_epoch_end(epoch)
        return tamiyo


@final
class Engine:
    """Tamiyo, or nothing in its place; keeps what the two runs are compared by."""

    def __init__(
        self, model: nn.Module, tamiyo: esper.Tamiyo | None, given: dict[str, Any]
    ) -> None:
        self.model = model
        self.tamiyo = tamiyo
        self.given = given
        self.values: list[list[Tensor]] = []
        self.verdicts: list[Verdict] = []
        self.isolated = 0
        self.began = False
        self.plain = True

    @property
    def made(self) -> esper.Tamiyo:
        assert self.tamiyo is not None
        return self.tamiyo

    @property
    def blended(self) -> bool:
        return self.tamiyo is not None and any(la.is_grown for la in self.tamiyo.layers.values())

    def on_batch_end(self, batch: Any) -> None:
        self.began = True
        if not self.blended:
            self.values.append([p.detach().clone() for p in self.model.parameters()])
        if self.tamiyo is not None:
            self.tamiyo.on_batch_end(batch)
            self.isolated += any(graft.state == "training" for graft in self.tamiyo.grafts.grafts)

    def on_epoch_end(self, epoch: int) -> float:
        """The held-out loss; of the control, 0."""
        if self.tamiyo is None:
            return 0.0
        report = self.tamiyo.on_epoch_end(epoch)
        self.verdicts += report.verdicts
        return report.holdout_loss

    def on_evaluation(self) -> float:
        if self.tamiyo is None:
            return 0.0
        report = self.tamiyo.on_evaluation()
        self.verdicts += report.verdicts
        return report.holdout_loss

    def finish(self) -> None:
        if self.tamiyo is not None:
            self.verdicts += self.tamiyo.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def check(self, control: "Engine") -> None:
        """A kernel was judged, by itself; until blending, the host was its control bit for bit."""
        judged = [verdict for verdict in self.verdicts if verdict.reward is not None]
        assert judged, [verdict.why for verdict in self.verdicts] or self.made.events()[-1]
        assert all(v.reward is not None and isfinite(v.reward) for v in judged)
        assert not [v.why for v in self.verdicts if v.why.startswith("failed by the loop")]
        assert self.isolated > 0
        assert self.values
        for ours, theirs in zip(self.values, control.values, strict=False):
            assert [p.shape for p in ours] == [p.shape for p in theirs]
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        self._check_optimizers()
        if self.plain:
            self._check_plain()

    def _check_optimizers(self) -> None:
        """Every kernel in the output is trained by one optimizer, in one group."""
        trainers = self.made.training.trainers
        held = [id(p) for o in trainers.optimizers for g in o.param_groups for p in g["params"]]
        assert len(held) == len(set(held))
        parts = [part for layer in self.made.layers.values() for part in layer.contributions()]
        assert {id(p) for part in parts for p in part.kernel.parameters()} <= set(held)

    def _check_plain(self) -> None:
        """The plain model gives the losses of the grown one."""
        batch = next(iter(self.given["holdout"]))

        def losses(model: nn.Module) -> Tensor:
            with torch.no_grad():
                found = copied(batch, tensors=True)
                return example_losses(self.given["loss_fn"], model.eval(), found)

        plain = esper.harden(self.model)
        torch.manual_seed(0)
        ours = losses(self.model)
        torch.manual_seed(0)
        assert torch.equal(losses(plain), ours)
