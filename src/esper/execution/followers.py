"""Averages of a model's weights that grow with it.

``torch.optim.swa_utils.AveragedModel`` and its like make a deep copy before growth and then pair
its parameters with the model's, one by one. A copy that such a holder keeps follows its origin:
whenever a kernel becomes visible, is absorbed or dropped, the copy's layer gets the same topology,
new kernels as copies. A plain ``deepcopy`` is a snapshot and stays what it is.
"""

import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.swa_utils import AveragedModel

_AVERAGES = re.compile(r"EMA|Ema|Averag(ed|ing)")
"""In the class names of those that keep an average, as timm's ``ModelEmaV3``."""


_ORIGINS: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()
_FOLLOWERS: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
_HANDLES: list[Any] = []


def watch() -> None:
    """Notice from now on, in this process, copies that a holder of averages takes in."""
    if not _HANDLES:
        _HANDLES.append(register_module_module_registration_hook(_registered))


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Deep copy of a module, whose origin is remembered."""
    twin = type(module).__new__(type(module))
    memo[id(module)] = twin
    twin.__dict__.update(deepcopy(module.__dict__, memo))
    _ORIGINS[twin] = ref(module)
    return twin


def followers(module: nn.Module) -> Iterable[Any]:
    """Copies that follow a module."""
    return tuple(_FOLLOWERS.get(module, ()))


def follows(module: nn.Module) -> bool:
    """True if a module is a copy that follows another."""
    origin = _ORIGINS.get(module)
    found = origin() if origin is not None else None
    return found is not None and module in _FOLLOWERS.get(found, ())


def _registered(holder: nn.Module, _name: str, part: nn.Module | None) -> None:
    averages = isinstance(holder, AveragedModel) or _AVERAGES.search(type(holder).__name__)
    if not averages or not isinstance(part, nn.Module):
        return
    for module in part.modules():
        origin = _ORIGINS.get(module)
        found = origin() if origin is not None else None
        if found is not None:
            _FOLLOWERS.setdefault(found, WeakSet()).add(module)
