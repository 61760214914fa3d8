"""Random numbers, the same whatever PyTorch's default type and device are: float32 on the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor


def source(seed: int) -> torch.Generator:
    """Generator of a seed."""
    return torch.Generator(device="cpu").manual_seed(seed)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """Numbers (count,) in [0, 1)."""
    return torch.rand(count, generator=generator, dtype=torch.float32, device="cpu")
