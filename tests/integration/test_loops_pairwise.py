"""The law of isolation over pairs of what loops are made of, and who trains a blended kernel."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typing_extensions import override

import esper
from esper.contracts.seeds import SeedState
from tests.pairwise import every_pair
from tests.unit.services.small_run import BATCH_SIZE, SEEDS, Batch, batches, same, settings, teacher

pytestmark = pytest.mark.trains


@dataclass(frozen=True)
class Loop:
    """What a loop is made of; every field may be absent."""

    norm: bool
    dropout: bool
    ema: bool
    clipping: bool
    penalty: bool
    amp: bool
    accumulation: bool
    two: bool
    schedule: bool

    @override
    def __str__(self) -> str:
        parts = [f.name for f in fields(self) if getattr(self, f.name)]
        return "+".join(parts) or "plain"


LOOPS = [Loop(*case) for case in every_pair(*[(False, True)] * len(fields(Loop)))]


@dataclass
class Trained:
    """A training in such a loop; ``grown=False`` is the control, which knows nothing of Tamiyo."""

    loop: Loop
    grown: bool
    train_epochs: int
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(3)
        width = 6
        self.model: nn.Module = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(6, width),
                norm=nn.BatchNorm1d(width) if self.loop.norm else nn.Identity(),
                act=nn.ReLU(),
                drop=nn.Dropout(0.2 if self.loop.dropout else 0.0),
                fc2=nn.Linear(width, 3),
            )
        )
        if self.grown:
            esper.wrap(self.model, ["fc1", "fc2"], SEEDS)
        self.optimizers = self._optimizers()
        self.schedulers = [CosineAnnealingLR(one, 20) for one in self.optimizers]
        self.schedulers = self.schedulers if self.loop.schedule else []
        average = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.model, multi_avg_fn=average)
        self.train_part = teacher(4 * BATCH_SIZE, seed=1)
        self.tamiyo = self._tamiyo() if self.grown else None
        torch.manual_seed(4)

    def _optimizers(self) -> list[Optimizer]:
        if not self.loop.two:
            return [Adam(self.model.parameters(), 0.02)]
        body, head = self.model.get_submodule("fc1"), self.model.get_submodule("fc2")
        norm = self.model.get_submodule("norm")
        held = [*body.parameters(), *norm.parameters()]
        return [SGD(held, 0.05, momentum=0.9), Adam(head.parameters(), 0.02)]

    def _tamiyo(self) -> esper.Tamiyo:
        return esper.Tamiyo(
            self.model,
            self.optimizers,
            loss_fn=self.loss,
            holdout=batches(teacher(64, seed=2)),
            config=settings(
                train_epochs=self.train_epochs, keep_stderrs=0.0, warmup_epochs=0, probe_every=2
            ),
            scheduler=self.schedulers or None,
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.loop.amp):
            y = model(batch[0])
        return F.mse_loss(y.float(), batch[1], reduction="none").mean(1)

    def run(self, epochs: int) -> "Trained":
        for epoch in range(epochs):
            order = torch.randperm(len(self.train_part[0]))
            for number, chosen in enumerate(torch.split(order, BATCH_SIZE)):
                batch = (self.train_part[0][chosen], self.train_part[1][chosen])
                self.step(batch, number)
                if self.tamiyo is not None:
                    self.tamiyo.on_batch_end(batch)
            if self.tamiyo is not None:
                self.tamiyo.on_epoch_end(epoch)
            for scheduler in self.schedulers:
                scheduler.step()
        return self

    def step(self, batch: Batch, number: int) -> None:
        self.model.train()
        loss = self.loss(self.model, batch).mean()
        if self.loop.penalty:
            loss = loss + 1e-3 * sum(p.square().sum() for p in self.model.parameters())
        loss.backward()  # type: ignore[no-untyped-call]
        self.losses.append(float(loss.detach()))
        if self.loop.accumulation and number % 2 == 0:
            return
        if self.loop.clipping:
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.loop.ema:
            self.ema.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """Everything that a control has too, bit for bit."""
        return {
            "model": _host(self.model.state_dict()),
            "ema": _host(self.ema.state_dict()),
            "losses": self.losses,
            "optimizers": [copy.deepcopy(one.state_dict()) for one in self.optimizers],
            "schedulers": [one.state_dict() for one in self.schedulers],
            "random": torch.get_rng_state(),
        }


def _host(state: dict[str, Any]) -> dict[str, Any]:
    left_out = (".seeds.", ".fossils.", "_extra_state")
    return {
        name.replace(".host", ""): value
        for name, value in state.items()
        if not any(part in name for part in left_out)
    }


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_the_host_is_its_control_bit_for_bit_until_blending(loop: Loop) -> None:
    grown, control = Trained(loop, True, 50).run(4), Trained(loop, False, 50).run(4)
    assert grown.tamiyo is not None
    states = [s for layer in grown.tamiyo.layers.values() for s in layer.seed_states]
    assert states.count(SeedState.TRAINING) > 0
    assert all(graft.trained for graft in grown.tamiyo.grafts.grafts[:1])
    ours, theirs = grown.state(), control.state()
    assert [part for part in ours if not same(ours[part], theirs[part])] == []


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_blended_kernel_is_trained_by_one_optimizer_and_averaged_once(loop: Loop) -> None:
    run = Trained(loop, True, 1).run(3)
    assert run.tamiyo is not None
    layers = run.tamiyo.layers.values()
    kernels = {id(p): p for x in layers for c in x.contributions() for p in c.kernel.parameters()}
    assert kernels
    held = [id(p) for one in run.optimizers for g in one.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in run.model.parameters())
    before = {key: p.detach().clone() for key, p in kernels.items()}
    for number in range(2):
        run.step((run.train_part[0][:BATCH_SIZE], run.train_part[1][:BATCH_SIZE]), number)
    moved = [key for key, p in kernels.items() if not torch.equal(before[key], p)]
    assert moved
    names = [name for name, _ in run.model.named_parameters()]
    assert [name for name, _ in run.ema.module.named_parameters()] == names
    for name, layer in run.tamiyo.layers.items():
        rates = {g["lr"] for g in _groups(run, layer.get_submodule("host"))}
        for part in layer.contributions():
            assert {g["lr"] for g in _groups(run, part.kernel)} == rates, name


def _groups(run: Trained, module: nn.Module) -> list[dict[str, Any]]:
    wanted = {id(p) for p in module.parameters()}
    every = (group for one in run.optimizers for group in one.param_groups)
    return [group for group in every if wanted & {id(p) for p in group["params"]}]
