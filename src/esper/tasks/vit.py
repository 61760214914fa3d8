"""Small vision transformer, pretrained on ``mnist5k`` and shipped with its weights."""

from importlib.resources import files
from typing import cast, final

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

WIDTH, HEADS, BLOCKS, PATCH, CLASSES = 48, 4, 3, 7, 10
SCALE = 8.0

# B batch, C channels, H height, W width, T patches, F features, D features of a head


@final
class Block(nn.Module):
    """Attention and feed-forward, each added to the stream and read through a norm.

    Args:
        rank: Rank of the trainable low-rank map in each linear layer; 0 for none.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (linear(WIDTH, WIDTH, rank) for _ in range(4))
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = linear(WIDTH, 4 * WIDTH, rank)
        self.down = linear(4 * WIDTH, WIDTH, rank)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        read_BTF = self.norm1(x_BTF)
        query, key, value = (
            cast("Tensor", part(read_BTF)).view(*read_BTF.shape[:2], HEADS, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed_BHTD = F.scaled_dot_product_attention(query, key, value)
        x_BTF = x_BTF + cast("Tensor", self.out(mixed_BHTD.transpose(1, 2).flatten(2)))
        return x_BTF + cast("Tensor", self.down(F.gelu(self.up(self.norm2(x_BTF)))))


@final
class VisionTransformer(nn.Module):
    """Classes of a picture (B, 1, 28, 28), read as 16 patches; 88,570 parameters.

    Args:
        rank: As of `Block`.

    Source:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, ICLR; with the mean over patches
        in place of a class token.
    """

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.position = nn.Parameter(torch.randn(1, (28 // PATCH) ** 2, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block(rank) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    @override
    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BTF = cast("Tensor", self.patch(x_BCHW)).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x_BTF = block(x_BTF)
        return cast("Tensor", self.head(cast("Tensor", self.norm(x_BTF)).mean(dim=1)))


@final
class LowRankLinear(nn.Linear):
    """``W x + b + 8 / sqrt(r) U V x`` with ``U_Gr`` zero and ``V_rF`` random at birth.

    Source:
        Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features)
        self.low_rank_down = nn.Parameter(torch.empty(rank, in_features))
        self.low_rank_up = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.uniform_(self.low_rank_down, -(in_features**-0.5), in_features**-0.5)

    @override
    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(x, self.low_rank_down), self.low_rank_up)
        factor: float = SCALE * len(self.low_rank_down) ** -0.5
        return super().forward(x) + factor * update


def linear(in_features: int, out_features: int, rank: int) -> nn.Linear:
    """Linear layer, with a low-rank map beside it if the rank is not 0."""
    if not rank:
        return nn.Linear(in_features, out_features)
    return LowRankLinear(in_features, out_features, rank)


def pretrained(rank: int = 0) -> VisionTransformer:
    """Pretrained and frozen network; a new head, and low-rank maps of this rank, are trainable.

    Draws from torch's CPU random state. ``scripts/pretrain_vit.py`` made the weights.
    """
    model = VisionTransformer(rank)
    data = (files("esper.tasks") / "data" / "vit.safetensors").read_bytes()
    with torch.no_grad():
        named = dict(model.named_parameters())
        for name, value in load(data).items():
            named[name].requires_grad_(False).copy_(value)
    return model
