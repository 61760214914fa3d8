"""Settings with which the hosts of tasks grow; ``docs/decisions`` 25, 27, 28 have the evidence."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NO_COOLDOWN = {"constraints": {"min_dormant_epochs": 0}}

WHOLE_NETWORK: Mapping[str, Any] = MappingProxyType(
    {
        "seed_selection": _NO_COOLDOWN,
        "growth": {
            "kernel_share": 0.5,
            "train_epochs": 0,
            "ramp": 0.0,
            "warmup_epochs": 1,
            "plateau_threshold": 1.0,
            "measure_on": False,
        },
    }
)
"""For one layer around a small network: few, large kernels, which train with the host."""

WIDTHS: Mapping[str, Any] = MappingProxyType(
    {
        "seed_selection": _NO_COOLDOWN,
        "growth": {
            "evenly": True,
            "kernel_share": 1.0,
            "max_active": 4,
            "starts": 4,
            "train_epochs": 0,
            "ramp": 0.0,
            "warmup_epochs": 3,
            "plateau_threshold": 1.0,
            "keep_stderrs": 0.0,
            "measure_on": False,
        },
    }
)
"""For all widths of a network: at once, by one factor, and whatever helps stays."""

WIDTHS_OF_A_STREAM: Mapping[str, Any] = MappingProxyType(
    {**WIDTHS, "growth": {**WIDTHS["growth"], "evenly": False, "kernel_share": 1 / 3, "starts": 3}}
)
"""At once too, by kernels of one size: a residual stream, whose units cost most, gets fewer."""

BLOCKS: Mapping[str, Any] = MappingProxyType(
    {
        "seed_selection": {**_NO_COOLDOWN, "audition": "never"},
        "growth": {
            "kernel_share": 1 / 3,
            "warmup_epochs": 1,
            "train_epochs": 1,
            "measure_on": False,
        },
    }
)
"""For layers around blocks."""

ADAPTATION: Mapping[str, Any] = MappingProxyType(
    {
        "seed_selection": _NO_COOLDOWN,
        "policy": "gradient",
        "growth": {
            "kernel_share": 1.0,
            "max_active": 64,
            "starts": 64,
            "train_epochs": 0,
            "judge": "never",
            "ramp": 0.0,
            "warmup_epochs": 1,
            "measure_on": False,
        },
    }
)
"""For the linear layers of a frozen network: low-rank kernels wherever the gradient asks for them,
all at once after the first epoch, trained together and kept."""
