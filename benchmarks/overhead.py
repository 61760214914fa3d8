"""Time and memory of a run beside the plain loop: an MLP, a convolutional net, a transformer.

Both loops take turns batch by batch, in an order that alternates; times are of the processor, on
one thread; a ratio is the median over epochs, with the least and the largest. Memory is the peak of
all tensors but the data, from the first weight on. Takes ten minutes, so ``make bench`` leaves it
out.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

import esper

Batch = tuple[Tensor, Tensor]

NEVER = 10**9
EPOCHS = 7
BATCHES = 50
"""Training batches of an epoch."""
TENTH = BATCHES // 10
"""Batches of a holdout of a tenth."""


@dataclass(frozen=True)
class Host:
    """A host to measure: how to make it, what it reads, and its layers that may grow."""

    name: str
    make: Callable[[], nn.Module]
    batch: Batch
    layers: tuple[str, ...]


class TokenModel(nn.Module):
    """Transformer of two blocks that classifies sequences of tokens."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.embed = nn.Embedding(64, 64)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    @override
    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Scores (B, 10)."""
        scores: Tensor = self.head(self.blocks(self.embed(tokens_BT)).mean(dim=1))
        return scores


def hosts() -> tuple[Host, ...]:
    """Hosts of three kinds."""
    return (
        Host(
            "MLP 32-512-512-10, batch 128",
            lambda: nn.Sequential(
                *(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()),
                nn.Linear(512, 10),
            ),
            (torch.randn(128, 32), torch.randint(10, (128,))),
            ("0", "2", "4"),
        ),
        Host(
            "conv net 16-32-32 on 28 x 28, batch 32",
            lambda: nn.Sequential(
                *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
                *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
            ),
            (torch.randn(32, 1, 28, 28), torch.randint(10, (32,))),
            ("4", "7"),
        ),
        Host(
            "transformer 2 x 64 on 32 tokens, batch 32",
            TokenModel,
            (torch.randint(64, (32, 32)), torch.randint(10, (32,))),
            ("blocks.layers.0.linear1", "blocks.layers.1"),
        ),
    )


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Loop:
    """A user's loop; with settings for growth, or plain without.

    Args:
        host: What to train.
        growth: Settings of growth; ``None`` for the plain loop.
        held_out: Batches of the holdout.
        replicate: Puts a wrapper around the model, as that of replicas, which the loop trains.
        audition: ``never``, so that seeds train one by one, or ``always``.
    """

    def __init__(
        self,
        host: Host,
        growth: dict[str, Any] | None = None,
        held_out: int = TENTH,
        replicate: Callable[[nn.Module], nn.Module] = lambda model: model,
        audition: str = "never",
    ) -> None:
        torch.manual_seed(0)
        self.batch = host.batch
        self.holdout = [(host.batch[0].clone(), host.batch[1].clone()) for _ in range(held_out)]
        self.model = host.make()
        if growth is not None:
            esper.wrap(self.model, list(host.layers))
        self.trained = replicate(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.tamiyo: esper.Tamiyo | None = None
        self.epoch = 0
        if growth is not None:
            self.tamiyo = esper.Tamiyo(
                self.trained,
                self.optimizer,
                loss_fn=loss_fn,
                holdout=self.holdout,
                config={"growth": growth, "seed_selection": {"audition": audition}},
            )

    def step(self) -> None:
        """Train on a batch."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss_fn(self.trained, self.batch).mean())
        self.optimizer.step()
        if self.tamiyo is not None:
            self.tamiyo.on_batch_end(self.batch)

    def end(self) -> None:
        """End an epoch; a plain loop validates."""
        if self.tamiyo is not None:
            self.tamiyo.on_epoch_end(self.epoch)
            self.epoch += 1
            return
        self.model.eval()
        with torch.no_grad():
            torch.cat([loss_fn(self.model, batch) for batch in self.holdout]).mean().item()
        self.model.train()

    def active(self) -> int:
        """Seeds in training."""
        return 0 if self.tamiyo is None else len(self.tamiyo.grafts.grafts)

    def activate(self, seeds: int) -> "Loop":
        """Go on until so many seeds train; warm up in any case."""
        for _ in range(10):
            self.step()
        self.end()
        while self.active() < seeds:
            self.step()
            self.end()
        return self


def growth(seeds: int = 0, probe_every: int = 50) -> dict[str, Any]:
    """Settings with which so many seeds begin to train soon, and go on for ever."""
    return {
        "warmup_epochs": 0 if seeds else NEVER,
        "plateau_threshold": 1e9,
        "max_active": max(1, seeds),
        "train_epochs": NEVER,
        "probe_every": probe_every,
    }


@dataclass(frozen=True)
class Ratios:
    """Our time over the plain loop's, one for each epoch.

    Attributes:
        batch: Medians over pairs of batches.
        epoch: Sums over an epoch, its end included; the plain loop does not validate.
        validated: The same, and the plain loop validates.
        step_ms: Time of a plain batch.
    """

    batch: list[float]
    epoch: list[float]
    validated: list[float]
    step_ms: float


def compare(
    host: Host, settings: dict[str, Any], *, seeds: int = 0, held_out: int = TENTH
) -> Ratios:
    """Train both loops for some epochs."""
    plain = Loop(host, held_out=held_out).activate(0)
    ours = Loop(host, settings, held_out).activate(seeds)
    batch, epoch, validated, steps = [], [], [], []
    for _ in range(EPOCHS):
        pairs = []
        for number in range(BATCHES):
            first, second = (ours, plain) if number % 2 else (plain, ours)
            one, two = _seconds(first.step), _seconds(second.step)
            pairs.append((one, two) if number % 2 else (two, one))
        ours_s, plain_s = (sum(times) for times in zip(*pairs, strict=True))
        plain_end_s, ours_end_s = _seconds(plain.end), _seconds(ours.end)
        batch.append(median(mine / base for mine, base in pairs))
        epoch.append((ours_s + ours_end_s) / plain_s)
        validated.append((ours_s + ours_end_s) / (plain_s + plain_end_s))
        steps.append(median(base for _, base in pairs))
    return Ratios(batch, epoch, validated, 1000 * median(steps))


def _seconds(run: Callable[[], None]) -> float:
    started = process_time()
    run()
    return process_time() - started


def memory_mb(host: Host, settings: dict[str, Any] | None, *, seeds: int = 0) -> float:
    """Peak of all tensors of a loop but its data, in megabytes, over the end of an epoch."""
    gc.collect()  # what is freed inside would count as less
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loop = Loop(host, settings).activate(seeds)
        loop.step()
        loop.end()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 1e6


def rows() -> list[tuple[str, str, str]]:
    """Ratios to the plain loop, by seeds in training, probes and size of the holdout."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = []
    for host in hosts():
        for row in (*_times(host), *_memory(host)):
            print(*row, sep=" | ", file=sys.stderr, flush=True)  # ten minutes are long
            found.append(row)
    torch.set_num_threads(threads)
    return found


def _times(host: Host) -> Iterator[tuple[str, str, str]]:
    alone = compare(host, growth(probe_every=NEVER))
    name, step = host.name, f"a batch is {alone.step_ms:.2g} ms"
    yield f"{name}: a batch, nothing active, no probes", _spread(alone.batch), "<= 1.02 x; " + step
    cases = {
        "probes off": ({"probe_every": NEVER}, TENTH, ""),
        "default": ({}, TENTH, "<= 1.03 x"),
        "a probe each batch": ({"probe_every": 1}, TENTH, ""),
        "holdout of a fiftieth": ({}, 1, ""),
        "holdout of a half": ({}, BATCHES // 2, ""),
        "1 seed in training": ({"seeds": 1}, TENTH, ""),
        "2 seeds in training": ({"seeds": 2}, TENTH, ""),
    }
    for what, (given, held_out, goal) in cases.items():
        seeds = given.get("seeds", 0)
        ratios = compare(host, growth(**given), seeds=seeds, held_out=held_out)
        tamiyo = Loop(host, growth(**given), held_out).tamiyo
        assert tamiyo is not None
        told = tamiyo.plan(batches=BATCHES).epoch_cost(seeds)
        value = f"{_spread(ratios.epoch)}; plain validates too: {_spread(ratios.validated)}"
        yield f"{name}: an epoch, {what}", value, f"{goal} (plan: {told:.2f} x)".strip()


def _memory(host: Host) -> list[tuple[str, str, str]]:
    plain = memory_mb(host, None)
    active = [memory_mb(host, growth(seeds), seeds=seeds) / plain for seeds in range(3)]
    value = ", ".join(f"{ratio:.2f} x with {seeds}" for seeds, ratio in enumerate(active))
    return [(f"{host.name}: memory, by seeds in training", value, f"plain: {plain:.2f} MB")]


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.3f} x [{min(ratios):.3f}, {max(ratios):.3f}]"
