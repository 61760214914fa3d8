"""Handwritten digits of 8 x 8 pixels, as 64 numbers."""

from collections import OrderedDict
from dataclasses import astuple
from typing import final

from torch import nn
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.growing import WHOLE_NETWORK


@final
class Digits(Task):
    """UCI Optical Recognition of Handwritten Digits, test part: 1,797 pictures of 10 classes.

    The smallest of the tasks: its held-out losses come with the widest error bars.

    Source:
        Alpaydin & Kaynak (1998), Cascading classifiers, Kybernetika 34.
    """

    name = "digits"
    description = "10 digits from 8 x 8 pixels; an MLP of 4 units with a block of two layers"
    layers = ("",)
    seeds = ("bottleneck", "glu", "bottleneck", "glu")
    config = WHOLE_NETWORK
    width = 4
    default_epochs = 60
    batch_size = 32
    default_budget = 2000
    learning_rate = 3e-3
    weight_decay = 3e-1

    @override
    def read(self) -> Splits:
        found = load_standardised("digits", each_feature=False)
        # Flat outside of the network, so that a kernel around all of it reads and writes features.
        flat = ((inputs.flatten(1), targets) for inputs, targets in astuple(found))
        return Splits(*flat)

    @override
    def build_host(self, width: int) -> nn.Module:
        # GELU: of four ReLUs, some are born dead, and the seed would decide the result.
        block = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        return nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(64, width),
                act1=nn.GELU(),
                block=block,
                act2=nn.GELU(),
                head=nn.Linear(width, 10),
            )
        )
