"""Handwritten digits, read by a residual convolutional network with batch norm."""

from typing import cast, final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.growing import WIDTHS_OF_A_STREAM

# B batch, C channels, H height, W width


@final
class ResNet(Task):
    """The pictures of ``mnist5k``, with batch norm after every convolution.

    Source:
        He, Zhang, Ren & Sun (2016), Deep residual learning for image recognition, CVPR, figure 2
        and section 4.2.
    """

    name = "resnet"
    description = "10 digits from 28 x 28 pixels; a residual CNN of 4 channels with batch norm"
    layers = ()
    seeds = ("units_select", "units_select")
    widen = ("auto",)
    config = WIDTHS_OF_A_STREAM
    width = 4
    default_epochs = 30
    batch_size = 64
    default_budget = 2000
    learning_rate = 1e-2
    weight_decay = 1e-2

    @override
    def read(self) -> Splits:
        return load_standardised("mnist5k", each_feature=False)

    @override
    def build_host(self, width: int) -> nn.Module:
        return ResidualNetwork(width)


@final
class ResidualNetwork(nn.Module):
    """Stem of stride 2, two blocks at 14 x 14 and at 7 x 7 places, mean over places, head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = ConvolutionBlock(width)
        self.block2 = ConvolutionBlock(width)
        self.head = nn.Linear(width, 10)

    @override
    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.block1(F.relu(self.norm(self.stem(x_BCHW))))
        x_BCHW = self.block2(F.max_pool2d(x_BCHW, 2))
        return cast("Tensor", self.head(F.adaptive_avg_pool2d(x_BCHW, 1).flatten(1)))


@final
class ConvolutionBlock(nn.Module):
    """``relu(x + bn(conv(relu(bn(conv(x))))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    @override
    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(x_BCHW + cast("Tensor", self.bn2(self.conv2(hidden_BCHW))))
