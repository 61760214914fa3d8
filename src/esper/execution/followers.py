"""Averages of a model's weights, and momentum copies of it, that grow with it.

``torch.optim.swa_utils.AveragedModel``, a teacher or a target network is made as a deep copy before
growth and then paired with the model's parameters, one by one. Such a copy follows its origin:
whenever a kernel becomes visible, is absorbed or dropped, the copy's layer gets the same topology,
new kernels as copies.

A copy follows if a holder of averages keeps it, or if it was seen moving: its weights are neither
those that it was made with nor those that were loaded into it. One that did not move, as
``best = deepcopy(model)``, is a snapshot and stays what it is.
"""

import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.swa_utils import AveragedModel

_AVERAGES = re.compile(r"EMA|Ema|Averag(ed|ing)")
"""In the class names of those that keep an average, as timm's ``ModelEmaV3``."""


_SAMPLE = 64
"""Values of each tensor that tell whether a copy has moved."""

_ORIGINS: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()
_COPIES: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
_FOLLOWERS: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
_SAMPLES: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()
_TOGETHER: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
"""Layers of one model that were copied at once: they are an average together, or none is."""
_HANDLES: list[Any] = []


def watch() -> None:
    """Notice from now on, in this process, copies that a holder of averages takes in."""
    if not _HANDLES:
        _HANDLES.append(register_module_module_registration_hook(_registered))


def copied(module: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    """Deep copy of a module, whose origin is remembered."""
    twin = type(module).__new__(type(module))
    memo[id(module)] = twin
    twin.__dict__.update(deepcopy(module.__dict__, memo))
    _ORIGINS[twin] = ref(module)
    _COPIES.setdefault(module, WeakSet()).add(twin)
    _TOGETHER[twin] = memo.setdefault("esper's layers", WeakSet())
    _TOGETHER[twin].add(twin)
    _SAMPLES[twin] = _sample(module)
    if _loaded not in twin._load_state_dict_post_hooks.values():
        twin.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]
    return twin


def followers(module: nn.Module) -> Iterable[Any]:
    """Copies that follow a module."""
    found = _FOLLOWERS.setdefault(module, WeakSet())
    for copy in tuple(_COPIES.get(module, ())):
        if copy not in found and any(map(_moved, tuple(_TOGETHER[copy]))):
            found.add(copy)
    return tuple(found)


def follows(module: nn.Module) -> bool:
    """True if a module is a copy that follows another."""
    origin = _ORIGINS.get(module)
    found = origin() if origin is not None else None
    return found is not None and module in _FOLLOWERS.get(found, ())


def adopt_frozen_copies(modules: Iterable[nn.Module]) -> None:
    """Let the copies among these modules follow that no gradient trains, as a target network."""
    found = list(modules)
    for module in found:
        origin = _ORIGINS.get(module)
        original = origin() if origin is not None else None
        if original in found and not any(p.requires_grad for p in module.parameters()):
            _FOLLOWERS.setdefault(original, WeakSet()).add(module)


def _registered(holder: nn.Module, _name: str, part: nn.Module | None) -> None:
    averages = isinstance(holder, AveragedModel) or _AVERAGES.search(type(holder).__name__)
    if not averages or not isinstance(part, nn.Module):
        return
    for module in part.modules():
        origin = _ORIGINS.get(module)
        found = origin() if origin is not None else None
        if found is not None:
            _FOLLOWERS.setdefault(found, WeakSet()).add(module)


def _sample(module: nn.Module) -> list[Tensor]:
    """Some values of each parameter of a layer's host."""
    found = [p.detach().flatten() for p in module.get_submodule("host").parameters()]
    return [values[:: max(1, len(values) // _SAMPLE)].cpu().clone() for values in found]


def _moved(copy: nn.Module) -> bool:
    """Whether a copy has other values than it was made with, as far as its type can tell."""
    before, now = _SAMPLES[copy], _sample(copy)
    return len(before) == len(now) and not all(
        torch.equal(old.to(new.dtype), new) for old, new in zip(before, now, strict=True)
    )


def _loaded(copy: nn.Module, _keys: object) -> None:
    """What is loaded from the origin, as a target network is set anew, is a snapshot again."""
    origin = _ORIGINS.get(copy)
    found = origin() if origin is not None else None
    if found is not None and copy in _SAMPLES:
        theirs, ours = _sample(found), _sample(copy)
        if len(theirs) == len(ours) and all(map(torch.equal, theirs, ours)):
            _SAMPLES[copy] = ours
