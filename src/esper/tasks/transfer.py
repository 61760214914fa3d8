"""A frozen, pretrained network that is adapted to other pictures, from 240 examples."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import astuple
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.growing import ADAPTATION
from esper.tasks.vit import pretrained

EXAMPLES = 24
"""Of each class, for training and again for validation."""

# N examples, C channels, H height, W width


class Adaptation(Task):
    """`VisionTransformer`, frozen, with a new head that is trained along.

    So the un-grown control is a linear probe, and a wider host has low-rank maps of rank
    ``width - 1`` beside all linear layers of its blocks, as LoRA has.

    Attributes:
        source: Name of the data file.
    """

    source: ClassVar[str]
    layers = tuple(f"blocks.*.{n}" for n in ("query", "key", "value", "out", "up", "down"))
    seeds = ("lora",)
    config = ADAPTATION
    width = 1
    default_epochs = 18
    batch_size = 30
    default_budget = 2592
    learning_rate = 1e-2
    full_rate = 2e-3
    weight_decay = 0.0

    @abstractmethod
    def picture(self, inputs: Tensor) -> Tensor:
        """Pictures (N, 1, 28, 28) from the arrays of the source."""

    @override
    def read(self) -> Splits:
        parts = list(astuple(load_standardised(self.source, each_feature=False)))
        parts[:2] = (_first_of_each_class(*part) for part in parts[:2])
        pictures = [self.picture(inputs) for inputs, _ in parts]
        return standardised(pictures, [targets_N for _, targets_N in parts])

    @override
    def build_host(self, width: int) -> nn.Module:
        return pretrained(rank=width - 1)


@final
class Transfer(Adaptation):
    """From digits of 28 x 28 pixels by some writers to those of 8 x 8 by others: a mild shift."""

    name = "transfer"
    description = "10 digits of 8 x 8 pixels by a frozen network that knows those of mnist5k"
    source = "digits"

    @override
    def picture(self, inputs: Tensor) -> Tensor:
        larger = F.interpolate(inputs, size=(24, 24), mode="bilinear", align_corners=False)
        return F.pad(larger, (2, 2, 2, 2), value=float(inputs.min()))


@final
class TransferFar(Adaptation):
    """To the digits that it knows, turned by 90 degrees and inverted: a strong shift."""

    name = "transfer_far"
    description = "10 digits, turned and inverted, by a frozen network that knows them upright"
    source = "mnist5k"

    @override
    def picture(self, inputs: Tensor) -> Tensor:
        return -torch.rot90(inputs, 1, (2, 3))


def standardised(pictures: Sequence[Tensor], targets: Sequence[Tensor]) -> Splits:
    """Splits whose pictures have mean 0 and standard deviation 1 in the training part.

    Args:
        pictures: Of each part, (N, 1, 28, 28).
        targets: Of each part, (N,).
    """
    deviation, mean = torch.std_mean(pictures[0].double())
    parts = zip(pictures, targets, strict=True)
    return Splits(*((((x - mean) / deviation).float(), targets_N) for x, targets_N in parts))


def _first_of_each_class(inputs: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    labels = range(int(targets_N.max()) + 1)
    chosen = [(targets_N == label).nonzero().ravel()[:EXAMPLES] for label in labels]
    kept_N = torch.cat(chosen).sort().values
    return inputs[kept_N], targets_N[kept_N]
