"""Adapters of one model side by side: which is on, and the host alone.

An adapter that is off keeps its kernels as the objects that they are, so it comes back bit for bit.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from esper.adapters.host import copied, named_host, trainable
from esper.contracts.errors import ConfigError, LifecycleError, unknown_name
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.seeded import Absorbed
from esper.execution.surgery import seeded_modules

DEFAULT = "default"


@dataclass(slots=True)
class Adapter:
    """Kernels by layer, and the values of the head, by plain name."""

    kernels: dict[str, list[Absorbed]] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Adapters:
    """Adapters of a model: which is on, those that are off, and the head as it was before any."""

    active: str
    host_head: dict[str, Tensor]
    others: dict[str, Adapter] = field(default_factory=dict)


_OF: "WeakKeyDictionary[nn.Module, _Adapters]" = WeakKeyDictionary()


def begin_adapter(model: nn.Module, name: str, head: list[str]) -> None:
    """Turn an adapter on that has no kernels yet, its head as the host's.

    Raises:
        ConfigError: if there is one of this name with kernels.
    """
    known, values = _OF.get(model), named_host(model)
    if known is None:
        _OF[model] = _Adapters(name, copied({n: values[n] for n in head}))
        return
    known.host_head |= copied({n: values[n] for n in head if n not in known.host_head})
    if name in known.others or (name == known.active and any(current(model).kernels.values())):
        raise ConfigError(f"the model has an adapter {name!r} already; give this one another name")
    known.others[known.active] = current(model)
    known.active = name
    _put(model, Adapter(head=dict(known.host_head)))


def drop_adapter(model: nn.Module, name: str) -> None:
    """Undo `begin_adapter`, of an adapter without kernels; the one that was on before is again."""
    known = _OF.get(model)
    if known is None or known.active != name:
        return
    if not known.others:
        del _OF[model]
        return
    known.active, before = known.others.popitem()
    _put(model, before)


def current(model: nn.Module) -> Adapter:
    """The adapter that is on.

    Raises:
        LifecycleError: if one of its kernels is under way.
    """
    kernels: dict[str, list[Absorbed]] = {}
    for name, layer in seeded_modules(model).items():
        if len(layer.contributions()) > len(layer.fossils):
            raise LifecycleError(
                f"a kernel of layer {name!r} is being blended in; call tamiyo.finish() first"
            )
        if layer.fossils:
            kernels[layer.name] = layer.absorbed
    known = _OF.get(model)
    names = trainable(model) if known is None else known.host_head
    values = named_host(model)
    return Adapter(kernels, copied({name: values[name] for name in names}))


def host_head(model: nn.Module) -> list[str]:
    """Plain names of the head's parameters."""
    known = _OF.get(model)
    return list(trainable(model) if known is None else known.host_head)


def adapter_names(model: nn.Module) -> list[str]:
    """Names of a model's adapters, the one that is on first."""
    known = _OF.get(model)
    if known is None:
        return [DEFAULT] if any(layer.is_grown for layer in seeded_modules(model).values()) else []
    return [known.active, *known.others]


def add_adapter(model: nn.Module, name: str, adapter: Adapter) -> None:
    """Put an adapter beside those that a model has, and turn it on."""
    begin_adapter(model, name, list(adapter.head))
    _put(model, adapter)


def set_adapter(model: nn.Module, name: str) -> None:
    """Turn an adapter on, and the one that was on off; its outputs are what they were, bit for bit.

    Raises:
        ConfigError: if there is none of this name.
        LifecycleError: if a kernel of the other is under way: finish its adaptation first.
    """
    known = _OF.get(model)
    if name not in adapter_names(model):
        raise ConfigError(unknown_name("adapter", name, adapter_names(model)))
    if known is None or name == known.active:
        return
    known.others[known.active] = current(model)
    _put(model, known.others.pop(name))
    known.active = name


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The host alone, its head as it was before any adapter, bit for bit.

    Example:
        >>> import esper
        >>> from esper.contracts.seeds import SeedState
        >>> model = esper.wrap(nn.Sequential(nn.Linear(2, 2)), ["0"], ["lora"])
        >>> x = torch.ones(1, 2)
        >>> before = model(x)
        >>> model[0].load_kernel(0, nn.Linear(2, 2))
        >>> for state in ("training", "blending", "holding"):
        ...     model[0].advance(0, SeedState(state))
        >>> with disabled(model):
        ...     print(torch.equal(model(x), before))
        True
        >>> torch.equal(model(x), before)
        False
    """
    known, values = _OF.get(model), named_host(model)
    head = {} if known is None else known.host_head
    now = copied({name: values[name] for name in head})
    with ExitStack() as stack:
        for layer in seeded_modules(model).values():
            stack.enter_context(layer.silenced())
        try:
            _put_head(model, head)
            yield
        finally:
            _put_head(model, now)


def _put(model: nn.Module, adapter: Adapter) -> None:
    layers = {la.name: la for la in seeded_modules(model).values() if isinstance(la, KasminaLayer)}
    for name, layer in layers.items():
        if layer.fossils or name in adapter.kernels:
            layer.put_absorbed(adapter.kernels.get(name, []))
    _put_head(model, adapter.head)


def _put_head(model: nn.Module, values: dict[str, Tensor]) -> None:
    parameters = named_host(model) if values else {}
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
