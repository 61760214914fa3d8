"""A user's training on a device, as the checks of GPUs run it; all of it works on a CPU too."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.services.tamiyo.settings import config_from
from tests.unit.services.small_run import batches, teacher

Batch = tuple[Tensor, Tensor]
EPOCHS = 7


def host() -> nn.Module:
    """A network with batch norm and dropout, which notice every pass."""
    torch.manual_seed(5)
    with torch.device("cpu"):
        return nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
        )


@final
@dataclass
class Training:
    """One training on a device.

    Attributes:
        device: ``"cuda"`` or ``"cpu"``.
        grown: Whether it grows; otherwise it is the control.
        autocast: Type of a mixed precision, if there is one.
        compiled: Backend of ``torch.compile``; empty for none.
        holdout: Held-out batches; by default a list of tensors on the device.
        growth: Further settings of growth.
        options: Further arguments of ``Tamiyo``.
    """

    device: str
    grown: bool = True
    autocast: torch.dtype | None = None
    compiled: str = ""
    holdout: Iterable[Any] | None = None
    growth: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = host().to(self.device)
        if self.grown:
            esper.wrap(model, layers=["0", "4"], seeds=["lowrank", "bottleneck", "gate"])
        self.model = model
        self.called: Callable[..., Tensor] = model
        if self.compiled:
            self.called = torch.compile(model, backend=self.compiled)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.autocast is torch.float16)
        self.losses: list[float] = []
        self.tamiyo = self._tamiyo() if self.grown else None
        torch.manual_seed(7)

    def _tamiyo(self) -> esper.Tamiyo:
        growth = {"budget": 2000, "plateau_threshold": 1.0, "train_epochs": 1, "keep_stderrs": 0.0,
                  "probe_every": 4, **self.growth}  # fmt: skip
        selection = {"strategy": "round_robin", "audition": "never"}
        held_out = [self.there(batch) for batch in batches(teacher(96, seed=2))]
        return esper.Tamiyo(
            self.model,
            self.optimizer,
            loss_fn=self.loss_fn,
            holdout=held_out if self.holdout is None else self.holdout,
            config=config_from({"growth": growth, "seed_selection": selection}),
            **self.options,
        )

    @property
    def engine(self) -> esper.Tamiyo:
        assert self.tamiyo is not None
        return self.tamiyo

    def there(self, batch: Batch) -> Batch:
        inputs, targets = (part.to(self.device, non_blocking=True) for part in batch)
        return inputs, targets

    def loss_fn(self, model: Callable[..., Tensor], batch: Batch) -> Tensor:
        inputs, targets = self.there(batch)
        precision: Any = nullcontext()
        if self.autocast is not None:
            precision = torch.autocast(self.device, self.autocast)
        with precision:
            return F.mse_loss(model(inputs), targets, reduction="none").float().mean(dim=1)

    def epoch(self, number: int) -> None:
        self.model.train()
        for part in batches(teacher(192, seed=1)):
            batch = self.there(part)
            self.optimizer.zero_grad()
            loss = self.loss_fn(self.called, batch).mean()
            torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.losses.append(float(loss.detach()))
            if self.tamiyo is not None:
                self.tamiyo.on_batch_end(batch)
        if self.tamiyo is not None:
            self.tamiyo.on_epoch_end(number)

    def run(self, epochs: int = EPOCHS, *, first: int = 0) -> "Training":
        for number in range(first, epochs):
            self.epoch(number)
        return self

    def state(self) -> dict[str, Any]:
        """States of everything that a resumed run loads, random numbers of the device included."""
        parts: dict[str, Any] = {
            "model": self.model,
            "tamiyo": self.engine,
            "optimizer": self.optimizer,
        }
        return deepcopy({name: one.state_dict() for name, one in parts.items()}) | {
            "random": random_state(self.device)
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.engine.load_state_dict(state["tamiyo"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"][0])
        if self.device == "cuda":
            torch.cuda.set_rng_state(state["random"][1])

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [dict(event.data) for event in self.engine.events() if event.kind == kind]


def random_state(device: str) -> list[Tensor]:
    """Random states of the CPU and of the device."""
    own = [torch.cuda.get_rng_state()] if device == "cuda" else []
    return [torch.get_rng_state(), *own]
