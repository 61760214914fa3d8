"""Capital letters, read by a residual network of features."""

from collections import OrderedDict
from typing import cast, final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper.tasks.base import Splits, Task
from esper.tasks.data_files import load_standardised
from esper.tasks.growing import WHOLE_NETWORK

STREAM = 16
BLOCKS = 2

# B batch, F features of the stream, H hidden units


@final
class ResMlp(Task):
    """UCI Letter Recognition, as ``letter``, with blocks that add to a stream of 16 features.

    Source:
        He, Zhang, Ren & Sun (2016), Deep residual learning for image recognition, CVPR, whose
        blocks these are without their convolutions.
    """

    name = "resmlp"
    description = "26 capital letters from 16 measurements; a residual MLP, 4 hidden units a block"
    layers = ("",)
    seeds = ("bottleneck", "glu", "bottleneck", "glu")
    config = WHOLE_NETWORK
    width = 4
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
        parts: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Linear(16, STREAM))
        parts.update({f"block{index}": ResidualBlock(width) for index in range(1, BLOCKS + 1)})
        parts.update(act=nn.ReLU(), head=nn.Linear(STREAM, 26))
        return nn.Sequential(parts)


@final
class ResidualBlock(nn.Module):
    """``x_F + W_FH relu(V_HF x_F)``, with biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(STREAM, width)
        self.down = nn.Linear(width, STREAM)

    @override
    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF + cast("Tensor", self.down(F.relu(self.up(x_BF))))
