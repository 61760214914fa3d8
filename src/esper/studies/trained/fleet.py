"""Fleet: many small adaptations of one frozen network, to digits that were altered each in its way.

A fleet is a sequence of such tasks, drawn from its seed and each task's number. Each has pictures
of one source, one or two alterations of its own strength, and 100 to 240 examples.
"""

from collections.abc import Callable
from dataclasses import astuple
from functools import cache
from math import cos, radians, sin
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper.tasks.base import Batch, Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.transfer import standardised
from esper.tasks.vit import pretrained

ADAPTATIONS = 40
"""Tasks of a fleet."""

STEPS = 8
"""Batches of an epoch, however many examples a task has."""

_SOURCES = "mnist5k", "digits"
_FEWEST, _MOST = 10, 24
_HELD_OUT, _TESTED = 200, 400
"""Examples that are held out, and of the test part, at most."""

# N examples; pictures are (N, 1, 28, 28) with 0 for the background and 1 for ink

Alteration = Callable[[Tensor, float, torch.Generator], Tensor]
"""Alters pictures by a strength in [0, 1]."""


@final
class Adaptation(Task):
    """One task of a fleet.

    Args:
        fleet: Seed of the fleet, >= 0.
        number: Number in the fleet, from 0.

    Attributes:
        title: Source and alterations, as ``"digits: turned, noisy"``.
        examples: Training examples of each class.
    """

    name = "fleet"
    description = "10 digits, altered, by a frozen network that knows them as they were"
    layers = tuple(f"blocks.*.{n}" for n in ("query", "key", "value", "out", "up", "down"))
    seeds = ("lora", "bottleneck", "causal_mixer")
    width = 1
    default_epochs = 8
    batch_size = 30
    default_budget = 250
    learning_rate = 1e-2
    weight_decay = 0.0

    def __init__(self, fleet: int = 0, number: int = 0) -> None:
        drawn = np.random.default_rng([fleet, number])
        names = drawn.choice(list(_ALTERATIONS), size=drawn.integers(1, 3), replace=False)
        self._source = _SOURCES[drawn.integers(len(_SOURCES))]
        self._alterations = [(str(name), float(drawn.uniform())) for name in names]
        self.examples = int(drawn.integers(_FEWEST, _MOST + 1))
        self.batch_size = self.examples * 10 // STEPS
        self.batches = STEPS
        self.title = f"{self._source}: {', '.join(names)}"
        self._seed = int(drawn.integers(2**31))
        self._splits: Splits | None = None

    @override
    def load(self) -> Splits:
        """Data, kept as long as the task: a fleet's would fill the memory."""
        if self._splits is None:
            self._splits = self.read()
        return self._splits

    @override
    def read(self) -> Splits:
        drawn = torch.Generator().manual_seed(self._seed)
        parts = list(_source(self._source))
        parts[0] = _of_each_class(parts[0], self.examples, drawn)
        parts[1:] = (
            _some(part, count, drawn)
            for part, count in zip(parts[1:], (_HELD_OUT, _TESTED), strict=True)
        )
        pictures = [_pictures(inputs) for inputs, _ in parts]
        for name, strength in self._alterations:
            pictures = [_ALTERATIONS[name](x, strength, drawn) for x in pictures]
        return standardised(pictures, [targets_N for _, targets_N in parts])

    @override
    def build_host(self, width: int) -> nn.Module:
        return pretrained(rank=width - 1)


@cache
def _source(name: str) -> tuple[Batch, Batch, Batch]:
    train, validation, test = astuple(load_standardised(name, each_feature=False))
    return train, validation, test


def _some(part: Batch, count: int, drawn: torch.Generator) -> Batch:
    inputs, targets_N = part
    kept_N = torch.randperm(len(targets_N), generator=drawn)[:count]
    return inputs[kept_N], targets_N[kept_N]


def _of_each_class(part: Batch, count: int, drawn: torch.Generator) -> Batch:
    inputs, targets_N = part
    order_N = torch.randperm(len(targets_N), generator=drawn)
    chosen = [order_N[targets_N[order_N] == label][:count] for label in range(10)]
    kept_N = torch.cat(chosen)
    return inputs[kept_N], targets_N[kept_N]


def _pictures(inputs: Tensor) -> Tensor:
    low, high = float(inputs.min()), float(inputs.max())
    x = (inputs - low) / (high - low)
    if x.shape[-1] == 28:
        return x
    larger = F.interpolate(x, size=(24, 24), mode="bilinear", align_corners=False)
    return F.pad(larger, (2, 2, 2, 2))


def _mapped(x: Tensor, degrees: float, size: float) -> Tensor:
    """Pictures turned, and ``size`` times as large."""
    a, b = cos(radians(degrees)) / size, sin(radians(degrees)) / size
    inverse = torch.tensor([[a, -b, 0.0], [b, a, 0.0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(inverse, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _turned(x: Tensor, strength: float, drawn: torch.Generator) -> Tensor:
    return _mapped(x, 25 + 75 * strength, 1.0)


def _smaller(x: Tensor, strength: float, drawn: torch.Generator) -> Tensor:
    return _mapped(x, 0.0, 0.75 - 0.25 * strength)


def _thicker(x: Tensor, strength: float, drawn: torch.Generator) -> Tensor:
    return F.max_pool2d(x, 5 if strength > 0.5 else 3, stride=1, padding=2 if strength > 0.5 else 1)


def _inverted(x: Tensor, strength: float, drawn: torch.Generator) -> Tensor:
    return 1 - (0.6 + 0.4 * strength) * x


def _noisy(x: Tensor, strength: float, drawn: torch.Generator) -> Tensor:
    return x + (0.2 + 0.4 * strength) * torch.randn(x.shape, generator=drawn)


def _occluded(x: Tensor, strength: float, drawn: torch.Generator) -> Tensor:
    """A square of each picture, somewhere in its middle, is the background."""
    side, made = round(8 + 6 * strength), x.clone()
    corners = torch.randint(3, 25 - side, (len(x), 2), generator=drawn).tolist()
    for picture, (row, column) in zip(made, corners, strict=True):
        picture[:, row : row + side, column : column + side] = 0
    return made


_ALTERATIONS: dict[str, Alteration] = {
    "turned": _turned,
    "smaller": _smaller,
    "thicker": _thicker,
    "inverted": _inverted,
    "noisy": _noisy,
    "occluded": _occluded,
}
