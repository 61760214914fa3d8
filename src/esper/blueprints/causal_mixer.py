"""Causal depthwise convolution over time."""

from dataclasses import dataclass
from typing import cast, final

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints.base import Blueprint
from esper.contracts.errors import ConfigError
from esper.contracts.seeds import LayerSpec

# B batch, T time, F features read, G features written, r width, k window


@final
@dataclass(frozen=True)
class CausalMixer(Blueprint):
    """``U gelu(c * (V x))``: ``c_rk`` a causal depthwise convolution with bias, ``U_Gr`` zero.

    Padded on the left alone, so a token reads itself and the ``k - 1`` before it.
    Parameters: ``r (F + k + 1 + G)``.

    Args:
        window: ``k``, >= 1, in tokens.

    Raises:
        ConfigError: if ``window`` is below 1.

    Source:
        Causal convolution: van den Oord et al. (2016), WaveNet, section 2.1; depthwise over time:
        Wu et al. (2019), Pay Less Attention with Lightweight and Dynamic Convolutions, section 3.
    """

    window: int = 4

    name = "causal_mixer"
    description = "causal depthwise convolution over time, low rank"
    kinds = ("sequence",)
    whitened = True

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"causal_mixer.window is {self.window}; it must be >= 1")

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return CausalMixerKernel(spec.in_size, spec.out_size, width, self.window)


@final
class CausalMixerKernel(nn.Module):
    """Kernel of ``CausalMixer``."""

    def __init__(self, in_size: int, out_size: int, width: int, window: int) -> None:
        super().__init__()
        self.past = window - 1
        self.down = nn.Linear(in_size, width, bias=False)
        self.mix = nn.Conv1d(width, width, window, groups=width)
        self.up = nn.Linear(width, out_size, bias=False)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        hidden_BrT = F.pad(self.down(x_BTF).transpose(1, 2), (self.past, 0))
        return cast("Tensor", self.up(F.gelu(self.mix(hidden_BrT)).transpose(1, 2)))
