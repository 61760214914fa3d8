"""Averages of a model's weights, and momentum copies of it, that grow with it.

``torch.optim.swa_utils.AveragedModel``, a teacher or a target network is made as a deep copy before
growth and then paired with the model's parameters, one by one. Such a copy follows its origin:
whenever a kernel becomes visible, is absorbed or dropped, the copy's layer gets the same topology,
new kernels as copies.

A copy follows if a holder of averages keeps it, or if it was seen moving: its weights are neither
those that it was made with nor those that were loaded into it. One that did not move, as
``best = deepcopy(model)``, is a snapshot and stays what it is.

A copy that was made before the model was wrapped is known by its values, equal to the model's, if
it is a frozen part of the same model or kept by a holder of averages.
"""

import gc
import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

_AVERAGES = re.compile(r"EMA|Ema|SWA|Averag(ed|ing)")
"""In the class names of those that keep an average, as timm's ``ModelEmaV3``."""
_NAMED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)", re.IGNORECASE)
"""In the names of variables that are one, as ``swa_model``."""


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
    _remember(module, twin, memo.setdefault("esper's layers", WeakSet()))
    return twin


def remember(pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Take layers for copies of others, made at once: pairs of an origin and its copy."""
    together: WeakSet[nn.Module] = WeakSet()
    for module, twin in pairs:
        _remember(module, twin, together)


def _remember(module: nn.Module, twin: nn.Module, together: WeakSet[nn.Module]) -> None:
    _ORIGINS[twin] = ref(module)
    _COPIES.setdefault(module, WeakSet()).add(twin)
    _TOGETHER[twin] = together
    together.add(twin)
    _SAMPLES[twin] = _sample(module)
    if _loaded not in twin._load_state_dict_post_hooks.values():
        twin.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]


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


def is_frozen_copy(site: Any) -> bool:
    """True if a site is a copy of another that no gradient trains, as in a target network."""
    origin = _ORIGINS.get(site)
    original: Any = origin() if origin is not None else None
    hosts = [list(one.host_parameters()) for one in (site, original) if one is not None]
    frozen = [not any(p.requires_grad for p in host) for host in hosts]
    return frozen == [True, False]


def plain_averages(model: nn.Module) -> list[nn.Module]:
    """Copies of a model in averages of its weights, which were made before it is wrapped."""
    # Instances refer to their class; this is the cheapest way to find them.
    found = [m for m in gc.get_referrers(type(model)) if type(m) is type(model)]
    equal = [m for m in found if m is not model and equals(m, model)]
    if not equal:
        return []
    holders = [holder for holder in gc.get_objects() if _is_average(holder)]
    averaged = {id(part) for one in holders for held in _held(one) for part in held.modules()}
    # An equal one that trains may be a control of the same seed, and the averages its own.
    alone = all(id(m) in averaged or _is_frozen(m) for m in equal)
    return [m for m in equal if alone and id(m) in averaged]


def copies_inside(model: nn.Module, names: Iterable[str]) -> list[tuple[str, str]]:
    """Layers with a frozen copy in another part of the same model, and the names of the copies."""
    modules = dict(model.named_modules())
    frozen = {
        n: m for n, m in modules.items() if _is_frozen(m) and next(m.parameters(), None) is not None
    }
    found = []
    for name in names if frozen else ():
        steps = name.split(".")
        for length in range(1, len(steps) + 1):  # the largest part that was copied
            part = ".".join(steps[:length])
            copies = [
                path
                for path, module in frozen.items()
                if type(module) is type(modules[part])
                and part not in frozen
                and equals(module, modules[part])
            ]
            if copies:
                found += [(name, path + name[len(part) :]) for path in copies]
                break
    return found


def equals(module: nn.Module, other: nn.Module) -> bool:
    """True if two modules have the same parameters, in name and value, and at least one."""
    ours, theirs = list(module.named_parameters()), list(other.named_parameters())
    if any(is_lazy(p) for _, p in (*ours, *theirs)):
        return False
    return len(ours) == len(theirs) > 0 and all(
        n == m and p.shape == q.shape and p.device == q.device and torch.equal(p, q)
        for (n, p), (m, q) in zip(ours, theirs, strict=True)
    )


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def take_in(holder: object, name: str = "") -> None:
    """Let the copies follow that an object keeps, if its class or itself is named as an average."""
    if _is_average(holder) or _NAMED.search(name):
        for part in _held(holder):
            _follow_all(part)


def _is_average(holder: object) -> bool:
    kind = type(holder)
    return issubclass(kind, AveragedModel) or _AVERAGES.search(kind.__name__) is not None


def _held(holder: object) -> list[nn.Module]:
    """Models that an object keeps, itself if it is one."""
    if isinstance(holder, nn.Module):
        return [holder]
    return [value for value in getattr(holder, "__dict__", {}).values() if _is_module(value)]


def _is_module(value: object) -> TypeGuard[nn.Module]:
    return issubclass(type(value), nn.Module)


def _registered(holder: object, _name: str, part: nn.Module | None) -> None:
    if _is_average(holder) and isinstance(part, nn.Module):
        _follow_all(part)


def _follow_all(part: nn.Module) -> None:
    for module in part.modules():
        origin = _ORIGINS.get(module)
        found = origin() if origin is not None else None
        if found is not None:
            _FOLLOWERS.setdefault(found, WeakSet()).add(module)


def _sample(module: Any) -> list[Tensor]:
    """Some values of each parameter of a layer's host."""
    found = [p.detach().flatten() for p in module.host_parameters()]
    return [values[:: max(1, len(values) // _SAMPLE)].cpu().clone() for values in found]


def _moved(copy: nn.Module) -> bool:
    """True if a copy has other values than it was made with, as far as its type can tell."""
    before, now = _SAMPLES[copy], _sample(copy)
    return len(before) == len(now) and not all(
        torch.equal(old.to(new.dtype), new) for old, new in zip(before, now, strict=True)
    )


def _loaded(copy: nn.Module, _keys: object) -> None:
    """Note a copy that loads its origin, as a target network is set anew: a snapshot again."""
    origin = _ORIGINS.get(copy)
    found = origin() if origin is not None else None
    if found is not None and copy in _SAMPLES:
        theirs, ours = _sample(found), _sample(copy)
        if len(theirs) == len(ours) and all(map(torch.equal, theirs, ours)):
            _SAMPLES[copy] = ours
