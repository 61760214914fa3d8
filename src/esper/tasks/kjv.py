"""Next characters of an English text from the seventeenth century."""

from typing import cast, final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper.tasks.base import Batch, Splits, Task
from esper.tasks.data_files import load_text
from esper.tasks.growing import BLOCKS

SYMBOLS = 64
WINDOW = 2

# B batch, T characters, F features, S symbols


@final
class Kjv(Task):
    """King James Bible, every sixth passage of 65 characters, of 64 symbols.

    A passage is an example: its first 64 characters are read, and each of the next ones is
    predicted from those before it. The loss of an example is the mean over its characters, its
    accuracy the share that is predicted.

    The host sees the last three characters alone, and its feed-forwards are as narrow as its
    stream: what it lacks most is a kernel that mixes positions.
    """

    name = "kjv"
    description = "next character of the King James Bible; a causal network that sees three"
    layers = ("block1", "block2")
    seeds = ("causal_mixer", "glu", "causal_mixer", "bottleneck")
    config = BLOCKS
    width = 24
    default_epochs = 20
    batch_size = 64
    default_budget = 6000
    learning_rate = 5e-3
    weight_decay = 1e-2

    @override
    def read(self) -> Splits:
        return load_text("kjv")

    @override
    def build_host(self, width: int) -> nn.Module:
        return CharacterModel(width)

    @override
    def loss_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        characters_BT, next_BT = batch
        logits_BTS: Tensor = model(characters_BT)
        return F.cross_entropy(logits_BTS.transpose(1, 2), next_BT, reduction="none").mean(dim=1)

    @override
    def accuracy_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        characters_BT, next_BT = batch
        logits_BTS: Tensor = model(characters_BT)
        return (logits_BTS.argmax(dim=2) == next_BT).float().mean(dim=1)


@final
class CharacterModel(nn.Module):
    """Embedding, two causal blocks, layer norm, head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, width)
        self.block1 = CausalBlock(width)
        self.block2 = CausalBlock(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS)

    @override
    def forward(self, characters_BT: Tensor) -> Tensor:
        x_BTF = self.block2(self.block1(self.embedding(characters_BT)))
        return cast("Tensor", self.head(self.norm(x_BTF)))


@final
class CausalBlock(nn.Module):
    """A causal depthwise convolution over two characters, then a feed-forward; both residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, WINDOW, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        past_BFT = F.pad(x_BTF.transpose(1, 2), (WINDOW - 1, 0))
        x_BTF = x_BTF + cast("Tensor", self.mix(past_BFT)).transpose(1, 2)
        return x_BTF + cast("Tensor", self.down(F.gelu(self.up(self.norm(x_BTF)))))
