"""Layers on axes in every order."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override


class Through(nn.Module):
    """Calls a layer on its input with the axes in another order; the mean over all but examples."""

    def __init__(self, layer: nn.Module, *order: int) -> None:
        super().__init__()
        self.layer = layer
        self.order = order

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.permute(self.order) if self.order else x)
        batch = self.order.index(0) if self.order else 0
        return y.transpose(0, batch).flatten(1)  # type: ignore[no-any-return]


class Inside(nn.Module):
    """Residual block on (B, T, F) or (T, B, F) whose convolution is over time."""

    def __init__(self, features: int, *order: int, causal: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.conv = nn.Conv1d(features, features, 3, padding=0 if causal else 1)
        self.order = order
        self.causal = causal

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x).permute(self.order)
        hidden = self.conv(F.pad(hidden, (2, 0)) if self.causal else hidden)
        back = sorted(range(3), key=self.order.__getitem__)
        return x + hidden.permute(back)  # type: ignore[no-any-return]


class CausalBlock(nn.Module):
    """Residual block on (B, C, L) that reads the past alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3)

    @override
    def forward(self, x_BCL: Tensor) -> Tensor:
        return x_BCL + self.conv(F.pad(x_BCL, (2, 0)))  # type: ignore[no-any-return]


class LastNorm2d(nn.LayerNorm):
    """A LayerNorm of the channels of a picture, as in timm."""

    @override
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """ConvNeXt's block, on (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mlp = nn.Linear(channels, channels)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Merging(nn.Module):
    """Swin's patch merging, (B, H, W, C) to half of the extents."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(2 * channels, 2 * channels)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(torch.cat([x[:, ::2, ::2], x[:, 1::2, 1::2]], -1))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """Mixes a fixed number of positions, so that it takes no other extent at either axis."""

    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.time = nn.Linear(length, length)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF + self.time(self.norm(x_BTF).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]
