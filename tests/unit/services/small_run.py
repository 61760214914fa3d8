"""A user's own training of a small network, grown or not: what the tests of the loop run."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

import esper
from esper.contracts.config import Config
from esper.contracts.events import Event
from esper.contracts.selection import Decision
from esper.execution.kernel import Kernel
from esper.execution.passes.counterfactual import Effect
from esper.services.tamiyo.growth.graft import Baseline, Graft
from esper.services.tamiyo.report import EpochReport
from esper.services.tamiyo.settings import config_from

Batch = tuple[Tensor, Tensor]

LAYERS = ("fc1", "fc2")
SEEDS = ("lowrank", "bottleneck", "gate", "glu")
BATCH_SIZE = 32
BATCHES_PER_EPOCH = 6
KEPT, CULLED = 0.05, -0.02
"""Worths that are kept and culled, at every bar up to four of these standard errors."""
STDERR = 0.01


def teacher(examples: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Inputs (N, 6) and targets (N, 3) that bend more than the host can."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 6, generator=generator, device="cpu")
    mixing = torch.randn(6, 3, generator=torch.Generator().manual_seed(99), device="cpu")
    bent = (inputs @ mixing).abs() + torch.sin(2 * inputs[:, :3])
    noise = 0.1 * torch.randn(bent.shape, generator=generator, device="cpu")
    return inputs.to(dtype), (bent + noise).to(dtype)


def batches(part: Batch) -> list[Batch]:
    return list(
        zip(torch.split(part[0], BATCH_SIZE), torch.split(part[1], BATCH_SIZE), strict=True)
    )


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets, reduction="none").mean(dim=1)


def host(seed: int = 0, *, restless: bool = True) -> nn.Module:
    """A small MLP; a restless one has dropout and batch-norm, which notice every forward pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(6, 4),
                norm=nn.BatchNorm1d(4) if restless else nn.Identity(),
                act=nn.ReLU(),
                drop=nn.Dropout(0.2 if restless else 0.0),
                fc2=nn.Linear(4, 3),
            )
        )


def settings(
    *, strategy: str = "ucb", constraints: Mapping[str, Any] | None = None, **growth: Any
) -> Config:
    """Settings with which a small run grows soon."""
    wanted = {"budget": 400, "plateau_threshold": 1.0, "probe_every": 4, **growth}
    selection = {"strategy": strategy, "constraints": dict(constraints or {})}
    return config_from({"growth": wanted, "seed_selection": selection})


@final
@dataclass
class SmallRun:
    """One training; ``grown=False`` is the control, which has never heard of Tamiyo.

    Attributes:
        worth: What the kernels of seed 0, 1, ... are worth, over and over, give or take `STDERR`;
            in place of what is measured. For tests of what *follows* from verdicts: a verdict on so
            short a training can hang on the last digits, and those on the processor.
    """

    grown: bool = True
    config: Config | str | None = None
    model: nn.Module = field(default_factory=host)
    make_optimizer: Callable[[nn.Module], Optimizer] = lambda model: Adam(
        model.parameters(), lr=0.02
    )
    make_scheduler: Callable[[Optimizer], Any] | None = None
    layers: tuple[str, ...] = LAYERS
    seeds: Any = SEEDS
    widen: Any = ()
    dtype: torch.dtype = torch.float32
    loss_fn: Callable[[Any, Any], Tensor] = loss_fn
    random_seed: int = 0
    worth: Sequence[float] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reports: list[EpochReport] = []
        self.losses: list[float] = []
        self.train_part = teacher(BATCH_SIZE * BATCHES_PER_EPOCH, seed=1, dtype=self.dtype)
        self.holdout = batches(teacher(96, seed=2, dtype=self.dtype))
        if self.grown:
            self._wrap()
        self.optimizer = self.make_optimizer(self.model)
        self.scheduler: Any = self.make_scheduler(self.optimizer) if self.make_scheduler else None
        torch.manual_seed(self.random_seed)
        self.tamiyo = self._tamiyo() if self.grown else None

    def _wrap(self) -> None:
        if self.widen:
            example = next(iter(batches(self.train_part)))
            given = {"widen": self.widen, "example": example, "loss_fn": self.loss_fn}
            esper.wrap(self.model, **given)
        else:
            esper.wrap(self.model, list(self.layers), self.seeds)

    def _tamiyo(self) -> esper.Tamiyo:
        given = {
            "loss_fn": self.loss_fn,
            "holdout": self.holdout,
            "config": settings() if self.config is None else self.config,
            "scheduler": self.scheduler,
            **self.options,
        }
        tamiyo = esper.Tamiyo(self.model, self.optimizer, **given)
        if self.worth:
            tell(tamiyo, self.worth)
        return tamiyo

    @property
    def engine(self) -> esper.Tamiyo:
        assert self.tamiyo is not None
        return self.tamiyo

    def train_batches(self) -> Iterator[Batch]:
        """The training examples in an order drawn from torch's global random state."""
        order = torch.randperm(len(self.train_part[0]))
        inputs, targets = self.train_part
        for chosen in torch.split(order, BATCH_SIZE):
            yield inputs[chosen], targets[chosen]

    def step(self, batch: Batch) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model, batch).mean()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        if self.tamiyo is not None:
            self.tamiyo.on_batch_end(batch)
        return float(loss.detach())

    def epoch(self, number: int) -> EpochReport | None:
        """Train one epoch, end it, and step the scheduler, as a user's loop would."""
        self.losses += [self.step(batch) for batch in self.train_batches()]
        report = self.tamiyo.on_epoch_end(number) if self.tamiyo is not None else None
        if self.scheduler is not None:
            self.scheduler.step()
        if report is not None:
            self.reports.append(report)
        return report

    def run(self, epochs: int, *, first: int = 0) -> "SmallRun":
        for number in range(first, epochs):
            self.epoch(number)
        return self

    def state(self) -> dict[str, Any]:
        """Everything of the host's that an un-grown control has too, random state included."""
        names = {id(p): n.replace(".host", "") for n, p in self.model.named_parameters()}
        tensors = {n.replace(".host", ""): t for n, t in self.model.state_dict().items()}
        own = {n: t.clone() for n, t in tensors.items() if ".seeds." not in n and "_extra" not in n}
        return {
            "tensors": own,
            "losses": list(self.losses),
            "optimizer": [
                {
                    **{k: v for k, v in group.items() if k not in ("params", "param_names")},
                    "names": [names[id(p)] for p in group["params"]],
                    "state": [deepcopy(self.optimizer.state.get(p, {})) for p in group["params"]],
                }
                for group in self.optimizer.param_groups
            ],
            "scheduler": None if self.scheduler is None else self.scheduler.get_last_lr(),
            "random": torch.get_rng_state(),
        }

    def events(self, *kinds: str) -> list[Event]:
        return [e for e in self.engine.events() if not kinds or e.kind in kinds]

    def facts(self, *kinds: str) -> list[dict[str, Any]]:
        return [dict(event.data) for event in self.events(*kinds)]


def tell(tamiyo: esper.Tamiyo, worth: Sequence[float]) -> None:
    """Have its kernels judged by ``worth`` instead of by a counterfactual; see `SmallRun`."""
    grafts = tamiyo.grafts
    make = grafts._graft

    def effect(graft: Graft) -> Effect:
        gain = worth[graft.decision.seed_idx % len(worth)]
        return Effect(gain=gain, stderr=STDERR, loss_off=1.0, loss_on=1.0 - gain, examples=96)

    def graft(decision: Decision, kernel: Kernel, baseline: Baseline) -> Graft:
        made = make(decision, kernel, baseline)
        made.judge = lambda calibration, beside=(): [  # type: ignore[method-assign]
            effect(one) for one in (made, *beside)
        ]
        return made

    grafts._graft = graft  # type: ignore[method-assign]


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal, tensors and numbers bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and identical(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def identical(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, so that NaN equals NaN and 0.0 is not -0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
