"""A run on a GPU beside the plain loop: a residual network and a transformer, in bfloat16.

Both loops take turns, stretch by stretch of 20 batches, and the processor waits for the GPU at the
ends of a stretch alone; a ratio is the median over stretches, with the quartiles. A wait is a call
that stops the processor until the GPU is done. Without CUDA nothing is measured.
"""

import sys
import warnings
from collections.abc import Iterator
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.overhead import NEVER, Host, Loop, growth

STRETCHES = 7
BATCHES = 20
"""Batches of a stretch."""


class Residual(nn.Module):
    """Convolutional block with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)]
        self.body = nn.Sequential(
            *(convolutions[0], nn.BatchNorm2d(channels), nn.ReLU()),
            *(convolutions[1], nn.BatchNorm2d(channels)),
        )

    @override
    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Of the same shape."""
        return torch.relu(x_BCHW + self.body(x_BCHW))


class Classifier(nn.Module):
    """Transformer that classifies sequences of vectors."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        """Scores (B, 10)."""
        scores: Tensor = self.head(self.blocks(x_BTF).mean(dim=1))
        return scores


class InBfloat16(nn.Module):
    """A network whose passes are under autocast."""

    def __init__(self, network: nn.Module, device: str) -> None:
        super().__init__()
        self.network, self.device = network, device

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Scores in float32."""
        with torch.autocast(self.device, torch.bfloat16):
            scores: Tensor = self.network(x)
        return scores.float()


def hosts(device: str, *, tiny: bool = False) -> tuple[Host, ...]:
    """Hosts on a device; ``tiny`` ones are to try the benchmark out."""
    c, b, size = (16, 8, 8) if tiny else (64, 256, 32)
    width, blocks, tokens, sequences = (32, 2, 8, 4) if tiny else (512, 6, 128, 32)

    def residual() -> nn.Module:
        stem = nn.Sequential(nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
        ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))
        return nn.Sequential(stem, *(Residual(c) for _ in range(2 if tiny else 6)), ends)

    return (
        Host(
            f"residual network of {c} channels, batch {b} of 3 x {size} x {size}",
            lambda: InBfloat16(residual(), device).to(device),
            (torch.randn(b, 3, size, size).to(device), torch.randint(10, (b,)).to(device)),
            ("network.1", "network.2.body.0"),
        ),
        Host(
            f"transformer {blocks} x {width}, batch {sequences} of {tokens} tokens",
            lambda: InBfloat16(Classifier(width, blocks), device).to(device),
            (torch.randn(sequences, tokens, width).to(device),
             torch.randint(10, (sequences,)).to(device)),
            ("network.blocks.layers.0.linear1", "network.blocks.layers.1"),
        ),
    )  # fmt: skip


def stretch_s(loop: Loop) -> float:
    """Seconds of some batches, from an idle GPU to an idle GPU."""
    _wait(loop)
    began = perf_counter()
    for _ in range(BATCHES):
        loop.step()
    _wait(loop)
    return perf_counter() - began


def waits(loop: Loop) -> float:
    """Times a batch in which the processor waits for the GPU."""
    if loop.batch[0].device.type != "cuda":
        return float("nan")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(BATCHES):
                loop.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in told) / BATCHES


def _wait(loop: Loop) -> None:
    if loop.batch[0].device.type == "cuda":
        torch.cuda.synchronize()


def rows(device: str = "cuda", *, tiny: bool = False) -> list[tuple[str, str, str]]:
    """Ratios to the plain loop, by seeds in training."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmark gpu: there is no CUDA here, so there is nothing to measure")
    torch.manual_seed(0)
    found = []
    for host in hosts(device, tiny=tiny):
        for row in _of(host):
            print(*row, sep=" | ", file=sys.stderr, flush=True)
            found.append(row)
    return found


def _of(host: Host) -> Iterator[tuple[str, str, str]]:
    plain = Loop(host).activate(0)
    cases: dict[str, tuple[int, dict[str, Any], str]] = {
        "nothing active, no probes": (0, growth(probe_every=NEVER), "never"),
        "nothing active, a probe in 50 batches": (0, growth(), "never"),
        "1 seed in training": (1, growth(1), "never"),
        "2 seeds in training": (2, growth(2), "never"),
        "an audition": (1, growth(1), "always"),
    }
    for case, (seeds, settings, audition) in cases.items():
        loop = Loop(host, settings, audition=audition).activate(seeds)
        what = f"{case} of {loop.active()} seeds" if audition == "always" else case
        stretch_s(loop)
        ratios = []
        for number in range(STRETCHES):
            first, second = (loop, plain) if number % 2 else (plain, loop)
            one, two = stretch_s(first), stretch_s(second)
            ratios.append(one / two if number % 2 else two / one)
        low, middle, high = quantiles(ratios, n=4)
        told = f"waits a batch: {waits(loop):.2g}, plain {waits(plain):.2g}"
        yield f"{host.name}: {what}", f"{middle:.3f} x [{low:.3f}, {high:.3f}]", told
    step_ms = 1000 * min(stretch_s(plain) for _ in range(5)) / BATCHES
    yield f"{host.name}: a batch of the plain loop", f"{step_ms:.2f} ms", ""
