"""Settings with which the hosts of tasks grow; ``docs/decisions`` 25 and 27 have the evidence."""

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
            "kernel_share": 0.2,
            "max_active": 4,
            "train_epochs": 0,
            "ramp": 0.0,
            "warmup_epochs": 3,
            "plateau_threshold": 1.0,
            "keep_stderrs": 0.0,
            "measure_on": False,
        },
    }
)
"""For all widths of a network: early, large kernels, of which whatever helps stays."""

ISOLATED_WIDTHS: Mapping[str, Any] = MappingProxyType(
    {**WIDTHS, "growth": {**WIDTHS["growth"], "train_epochs": 1, "ramp": 1.0}}
)
"""The same, with an epoch in isolation and one of blending."""

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
