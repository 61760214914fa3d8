"""Handwritten digits of 8 x 8 pixels, with a wrapped block of three layers."""

from collections import OrderedDict
from typing import final

from torch import nn
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised


@final
class Digits(Task):
    """UCI Optical Recognition of Handwritten Digits, test part: 1,797 pictures of 10 classes.

    The smallest of the tasks: its held-out losses come with the widest error bars.

    Source:
        Alpaydin & Kaynak (1998), Cascading classifiers, Kybernetika 34.
    """

    name = "digits"
    description = "10 digits from 8 x 8 pixels; an MLP of 4 units with a wrapped block"
    layers = ("fc1", "block", "head")
    seeds = ("lowrank", "bottleneck", "gate", "glu")
    width = 4
    default_epochs = 60
    batch_size = 32
    default_budget = 2000
    learning_rate = 3e-3
    weight_decay = 3e-1

    @override
    def read(self) -> Splits:
        return load_standardised("digits", each_feature=False)

    @override
    def build_host(self, width: int) -> nn.Module:
        # GELU: of four ReLUs, some are born dead, and the seed would decide the result.
        block = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        return nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                fc1=nn.Linear(64, width),
                act1=nn.GELU(),
                block=block,
                act2=nn.GELU(),
                head=nn.Linear(width, 10),
            )
        )
