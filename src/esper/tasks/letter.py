"""Capital letters in twenty fonts, from sixteen measurements of their picture."""

from collections import OrderedDict
from typing import final

from torch import nn
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.growing import WHOLE_NETWORK


@final
class Letter(Task):
    """UCI Letter Recognition: 20,000 examples of 16 features and 26 classes.

    Source:
        Frey & Slate (1991), Letter recognition using Holland-style adaptive classifiers,
        Machine Learning 6.
    """

    name = "letter"
    description = "26 capital letters from 16 measurements; an MLP of 8 and 8 units"
    layers = ("",)
    seeds = ("bottleneck", "glu", "bottleneck", "glu")
    config = WHOLE_NETWORK
    width = 8
    default_epochs = 60
    batch_size = 64
    default_budget = 2000
    learning_rate = 5e-3
    weight_decay = 3e-2

    @override
    def read(self) -> Splits:
        return load_standardised("letter", each_feature=True)

    @override
    def build_host(self, width: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(16, width),
                act1=nn.ReLU(),
                fc2=nn.Linear(width, width),
                act2=nn.ReLU(),
                fc3=nn.Linear(width, 26),
            )
        )
