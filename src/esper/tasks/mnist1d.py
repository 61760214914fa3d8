"""Digits as noisy, shifted, sheared curves of forty samples."""

from collections import OrderedDict
from typing import final

from torch import nn
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.growing import WIDTHS


@final
class Mnist1d(Task):
    """MNIST-1D: 5,000 curves of 40 samples and 10 classes, made by the authors' own generator.

    Split anew, so a test accuracy is close to, but not the same as, that of the published table.

    Source:
        Greydanus & Kobak (2024), Scaling down deep learning with MNIST-1D, ICML.
    """

    name = "mnist1d"
    description = "10 digits as curves of 40 samples; a 1-D CNN of 8 channels"
    layers = ()
    seeds = ("units_select", "units_select")
    widen = ("auto",)
    config = WIDTHS
    width = 8
    default_epochs = 60
    batch_size = 64
    default_budget = 2000
    learning_rate = 6e-3
    weight_decay = 1e-2

    @override
    def read(self) -> Splits:
        return load_standardised("mnist1d", each_feature=False)

    @override
    def build_host(self, width: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                stem=nn.Conv1d(1, width, 5, stride=2, padding=2),
                act0=nn.ReLU(),
                conv1=nn.Conv1d(width, width, 3, padding=1),
                act1=nn.ReLU(),
                pool1=nn.MaxPool1d(2),
                conv2=nn.Conv1d(width, width, 3, padding=1),
                act2=nn.ReLU(),
                pool2=nn.MaxPool1d(2),
                conv3=nn.Conv1d(width, width, 3, padding=1),
                act3=nn.ReLU(),
                mean=nn.AvgPool1d(5),
                flatten=nn.Flatten(),
                head=nn.Linear(width, 10),
            )
        )
