"""Esper grows PyTorch networks while they train; a bandit that learns decides which seed to grow.

Names are imported on first use: ``import esper`` alone imports neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from esper.contracts import version as _version

__version__ = _version.VERSION

if TYPE_CHECKING:
    from esper import strategies as strategies
    from esper.adapters.adapt import adapt as adapt
    from esper.adapters.merging import export_lora as export_lora
    from esper.adapters.merging import merge as merge
    from esper.adapters.report import adapter_report as adapter_report
    from esper.adapters.saving import load_adapter as load_adapter
    from esper.adapters.saving import print_trainable_parameters as print_trainable_parameters
    from esper.adapters.saving import save_adapter as save_adapter
    from esper.adapters.switching import adapter_names as adapter_names
    from esper.adapters.switching import disabled as disabled
    from esper.adapters.switching import set_adapter as set_adapter
    from esper.contracts.config import Config as Config
    from esper.contracts.errors import ConfigError as ConfigError
    from esper.contracts.errors import EsperError as EsperError
    from esper.contracts.errors import KernelError as KernelError
    from esper.contracts.errors import LifecycleError as LifecycleError
    from esper.contracts.errors import MeasurementError as MeasurementError
    from esper.contracts.errors import NoViableSeedError as NoViableSeedError
    from esper.contracts.errors import ReplicaError as ReplicaError
    from esper.contracts.errors import SelectionError as SelectionError
    from esper.contracts.errors import StoreError as StoreError
    from esper.contracts.performance import PerformanceDelta as PerformanceDelta
    from esper.contracts.seeds import SeedState as SeedState
    from esper.contracts.selection import SelectionContext as SelectionContext
    from esper.execution.harden import harden as harden
    from esper.execution.kasmina_layer import KasminaLayer as KasminaLayer
    from esper.execution.surgery import unwrap as unwrap
    from esper.integrations.pretrained import from_pretrained as from_pretrained
    from esper.services.tamiyo.bandit import Bandit as Bandit
    from esper.services.tamiyo.performance_tracker import PerformanceTracker as PerformanceTracker
    from esper.services.tamiyo.seed_selector import SeedSelector as SeedSelector
    from esper.services.tamiyo.settings import load_config as load_config
    from esper.services.tamiyo.tamiyo import Tamiyo as Tamiyo
    from esper.widths.find import sites as sites
    from esper.widths.host import host_parameters as host_parameters
    from esper.widths.wrap import wrap as wrap

_HOMES = {
    "esper.adapters.adapt": ("adapt",),
    "esper.adapters.merging": ("export_lora", "merge"),
    "esper.adapters.report": ("adapter_report",),
    "esper.adapters.saving": ("load_adapter", "print_trainable_parameters", "save_adapter"),
    "esper.adapters.switching": ("adapter_names", "disabled", "set_adapter"),
    "esper.integrations.pretrained": ("from_pretrained",),
    "esper.execution.surgery": ("unwrap",),
    "esper.execution.harden": ("harden",),
    "esper.widths.host": ("host_parameters",),
    "esper.widths.find": ("sites",),
    "esper.widths.wrap": ("wrap",),
    "esper.execution.kasmina_layer": ("KasminaLayer",),
    "esper.services.tamiyo.tamiyo": ("Tamiyo",),
    "esper.services.tamiyo.bandit": ("Bandit",),
    "esper.services.tamiyo.seed_selector": ("SeedSelector",),
    "esper.services.tamiyo.performance_tracker": ("PerformanceTracker",),
    "esper.services.tamiyo.settings": ("load_config",),
    "esper.contracts.config": ("Config",),
    "esper.contracts.selection": ("SelectionContext",),
    "esper.contracts.performance": ("PerformanceDelta",),
    "esper.contracts.seeds": ("SeedState",),
    "esper.contracts.errors": (
        *("EsperError", "ConfigError", "MeasurementError", "SelectionError"),
        *("NoViableSeedError", "KernelError", "LifecycleError", "ReplicaError", "StoreError"),
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", "strategies", *_HOME]  # noqa: PLE0604 (names of the table)


def __getattr__(name: str) -> Any:
    if name == "strategies":
        return import_module("esper.strategies")
    if name not in _HOME:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
