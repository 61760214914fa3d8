"""Esper grows PyTorch networks while they train; a bandit that learns decides which seed to grow.

Names are imported on first use: ``import esper`` alone imports neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from esper.contracts.errors import (
        ConfigError as ConfigError,
    )
    from esper.contracts.errors import (
        EsperError as EsperError,
    )
    from esper.contracts.errors import (
        KernelError as KernelError,
    )
    from esper.contracts.errors import (
        LifecycleError as LifecycleError,
    )
    from esper.contracts.errors import (
        MeasurementError as MeasurementError,
    )
    from esper.contracts.errors import (
        NoViableSeedError as NoViableSeedError,
    )
    from esper.contracts.errors import (
        SelectionError as SelectionError,
    )
    from esper.contracts.errors import (
        StoreError as StoreError,
    )
    from esper.contracts.seeds import SeedState as SeedState
    from esper.execution.harden import harden as harden
    from esper.execution.kasmina_layer import KasminaLayer as KasminaLayer
    from esper.execution.surgery import unwrap as unwrap
    from esper.execution.surgery import wrap as wrap
    from esper.services.tamiyo.bandit import Bandit as Bandit
    from esper.services.tamiyo.settings import load_config as load_config
    from esper.services.tamiyo.tamiyo import Tamiyo as Tamiyo

_HOME = {
    "wrap": "esper.execution.surgery",
    "unwrap": "esper.execution.surgery",
    "harden": "esper.execution.harden",
    "KasminaLayer": "esper.execution.kasmina_layer",
    "Tamiyo": "esper.services.tamiyo.tamiyo",
    "Bandit": "esper.services.tamiyo.bandit",
    "load_config": "esper.services.tamiyo.settings",
    "SeedState": "esper.contracts.seeds",
    "EsperError": "esper.contracts.errors",
    "ConfigError": "esper.contracts.errors",
    "MeasurementError": "esper.contracts.errors",
    "SelectionError": "esper.contracts.errors",
    "NoViableSeedError": "esper.contracts.errors",
    "KernelError": "esper.contracts.errors",
    "LifecycleError": "esper.contracts.errors",
    "StoreError": "esper.contracts.errors",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (names of the table)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
