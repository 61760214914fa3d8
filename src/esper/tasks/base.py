"""Task: the contract of a classification problem with fixed splits, host and training."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from types import MappingProxyType
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from esper.contracts.errors import ConfigError

# B batch, N examples, ... shape of one example

Batch = tuple[Tensor, Tensor]
"""Inputs (B, ...) as float32, or symbol numbers as int64; targets (B,), or (B, T) one for each
symbol, as int64 class numbers. On the CPU."""

EVALUATION_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Splits:
    """Parts of a task's data, each (inputs, targets); not to be modified.

    Attributes:
        train: For training.
        validation: Held out; judges grafts and decides which are kept.
        test: Held out from those decisions too; for reports.
    """

    train: Batch
    validation: Batch
    test: Batch


@final
class Batches:
    """Consecutive batches of a part; can be iterated any number of times.

    Args:
        part: Inputs (N, ...) and targets (N, ...).
        size: Examples of a batch, >= 1; the last batch may have fewer.
        order: Indices into the part, by default ascending.
    """

    def __init__(self, part: Batch, size: int, order: Tensor | None = None) -> None:
        self.size = size
        self._part = part
        self._order = torch.arange(len(part[1])) if order is None else order

    def __iter__(self) -> Iterator[Batch]:
        inputs, targets = self._part
        for start in range(0, len(self._order), self.size):
            chosen_B = self._order[start : start + self.size]
            yield inputs[chosen_B], targets[chosen_B]

    def __len__(self) -> int:
        return ceil(len(self._order) / self.size)


class Task(ABC):
    """Classification problem for ``esper train``.

    A subclass is a ``@final`` class without settings that sets the class attributes, writes
    ``read`` and ``build_host``, and passes ``esper.testing.task_laws``.

    Attributes:
        name: Name in the table.
        description: One line for lists.
        layers: Names of the host's layers that may grow, as ``esper.wrap`` takes them.
        seeds: Blueprint of each seed of every such layer; all fit all layers.
        widen: Names of the widths that may grow, given to ``esper.wrap(widen=...)`` if there are
            any.
        config: Sections of settings that differ from the product's; a user's own file wins, key by
            key.
        width: Hidden units or channels of the host, too few on purpose.
        default_epochs: Length of a run.
        batch_size: Training examples of a step.
        batches: Batches of an epoch; ``None`` for as many as the training part has.
        default_budget: Parameters that growth may add in all.
        learning_rate: Of AdamW at the beginning; it falls along a cosine to 0.
        full_rate: The same where a host that is frozen otherwise is trained in full; ``None`` if it
            is not frozen.
        weight_decay: Of AdamW, decoupled.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    layers: ClassVar[tuple[str, ...]]
    seeds: ClassVar[tuple[str, ...]]
    widen: ClassVar[tuple[str, ...]] = ()
    config: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    width: ClassVar[int]
    default_epochs: ClassVar[int]
    batch_size: int
    batches: int | None = None
    default_budget: ClassVar[int]
    learning_rate: ClassVar[float]
    full_rate: ClassVar[float | None] = None
    weight_decay: ClassVar[float]

    @abstractmethod
    def read(self) -> Splits:
        """Read and normalise the data afresh; normalisation is fitted on the training part."""

    @abstractmethod
    def build_host(self, width: int) -> nn.Module:
        """Build the host of this width, drawing from torch's CPU random state."""

    def load(self) -> Splits:
        """Data, read once per process."""
        return _read_once(type(self))

    @final
    def host(self, seed: int, *, width: int | None = None) -> nn.Module:
        """New host with the initial weights of ``seed``; torch's random state is restored.

        A ``width`` above the task's gives the static network that growth is compared with.

        Raises:
            ConfigError: if ``width`` is less than 1.
        """
        width = self.width if width is None else width
        if width < 1:
            raise ConfigError(f"width of a {self.name} host is {width}; it must be >= 1")
        # Only the CPU's generator: torch.manual_seed would also reseed every accelerator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.build_host(width)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Optimizer of a run, over all of the model's trainable parameters."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        # Fused: one call for all parameters; these hosts are so small that the calls are the cost.
        return AdamW(trainable, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def scheduler(self, optimizer: Optimizer, epochs: int) -> LRScheduler:
        """Schedule of a run, stepped at the end of each epoch; the same for all networks."""
        return CosineAnnealingLR(optimizer, epochs)

    def loss_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each example in nats, shape (B,)."""
        inputs, targets_B = batch
        return F.cross_entropy(model(inputs), targets_B, reduction="none")

    def accuracy_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        """1.0 for each example whose class is scored highest, else 0.0, shape (B,)."""
        inputs, targets_B = batch
        scores: Tensor = model(inputs)
        return (scores.argmax(dim=1) == targets_B).float()

    @final
    def train_batches(self, epoch: int, seed: int) -> Batches:
        """Training examples, each at most once, in an order of ``seed`` and ``epoch`` alone.

        So a resumed run sees the same batches.

        Raises:
            ConfigError: if ``epoch`` or ``seed`` is negative.
        """
        for what, value in (("epoch", epoch), ("seed", seed)):
            if value < 0:
                raise ConfigError(f"{what} of the training batches is {value}; it must be >= 0")
        part = self.load().train
        order = np.random.default_rng([seed, epoch]).permutation(len(part[1]))
        size = self.batch_size
        drawn = order if self.batches is None else order[: self.batches * size]
        return Batches(part, size, torch.from_numpy(drawn))

    @final
    def validation_batches(self) -> Batches:
        """Validation part in large batches, always the same."""
        return self._held_out("validation")

    @final
    def test_batches(self) -> Batches:
        """Test part in large batches, always the same."""
        return self._held_out("test")

    def _held_out(self, part: Literal["validation", "test"]) -> Batches:
        return Batches(getattr(self.load(), part), EVALUATION_BATCH)


@cache
def _read_once(task: type[Task]) -> Splits:
    return task().read()
