"""Adapters of one model side by side: which is on, and the host alone.

An adapter that is off keeps its kernels as the objects that they are, so it comes back bit for bit.
What is known of them is an attribute of the model, so copies of it and pickles have it too.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import RLock

import torch
from torch import Tensor, nn

from esper.adapters.host import copied, named_host, named_statistics, named_values, trainable
from esper.contracts.errors import ConfigError, EsperError, LifecycleError, unknown_name
from esper.execution.harden import ADAPTERS
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.seeded import Absorbed
from esper.execution.surgery import seeded_modules

DEFAULT = "default"

_LOCK = RLock()
"""Held while blocks of `disabled` begin and end, of whatever thread."""


@dataclass(slots=True)
class Adapter:
    """Kernels by layer, and the values of the head, by plain name.

    With the head go the host's statistics that moved, as those of a batch norm in training mode.
    """

    kernels: dict[str, list[Absorbed]] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Adapters:
    """Adapters of a model: which is on, those that are off, and the head as it was before any.

    While blocks of `disabled` are open, ``blocks`` counts them, and ``resting`` is the head of the
    adapter that is on.
    """

    active: str
    host_head: dict[str, Tensor]
    others: dict[str, Adapter] = field(default_factory=dict)
    blocks: int = 0
    resting: dict[str, Tensor] = field(default_factory=dict)


def _of(model: nn.Module) -> _Adapters | None:
    known: _Adapters | None = vars(model).get(ADAPTERS)
    return known


def begin_adapter(model: nn.Module, name: str, head: list[str]) -> None:
    """Turn an adapter on that has no kernels yet, its head as the host's.

    Raises:
        ConfigError: if there is one of this name with kernels, or the name is none.
        LifecycleError: if the model is in a block of `disabled`.
    """
    if not (isinstance(name, str) and name):
        raise ConfigError(f"name {name!r} of the adapter must be a text, as {DEFAULT!r}")
    _refuse_disabled(model)
    known, values = _of(model), named_values(model)
    moving = copied({n: values[n] for n in [*head, *named_statistics(model)]})
    if known is None:
        vars(model)[ADAPTERS] = _Adapters(name, moving)
        return
    known.host_head = moving | known.host_head
    if name in known.others or (name == known.active and any(current(model).kernels.values())):
        raise ConfigError(f"the model has an adapter {name!r} already; give this one another name")
    known.others[known.active] = current(model)
    known.active = name
    _put(model, Adapter())


def drop_adapter(model: nn.Module, name: str) -> None:
    """Undo `begin_adapter`, of an adapter without kernels; the one that was on before is again."""
    known = _of(model)
    if known is None or known.active != name:
        return
    if not known.others:
        del vars(model)[ADAPTERS]
        return
    known.active, before = known.others.popitem()
    _put(model, before)


def current(model: nn.Module) -> Adapter:
    """The adapter that is on.

    Raises:
        LifecycleError: if one of its kernels is under way, or the model is in a block of
            `disabled`.
    """
    _refuse_disabled(model)
    kernels: dict[str, list[Absorbed]] = {}
    for name, layer in seeded_modules(model).items():
        if len(layer.contributions()) > len(layer.fossils):
            raise LifecycleError(
                f"a kernel of layer {name!r} is being blended in; call tamiyo.finish() first"
            )
        if layer.fossils:
            kernels[layer.name] = layer.absorbed
    known, parameters, statistics = _of(model), named_host(model), named_statistics(model)
    if known is None:
        return Adapter(kernels, copied(trainable(model)))
    moved = {
        name: value
        for name, value in statistics.items()
        if name in known.host_head and not _equal(value, known.host_head[name])
    }
    head = {name: parameters[name] for name in known.host_head if name not in statistics}
    return Adapter(kernels, copied(head | moved))


def _equal(value: Tensor, before: Tensor) -> bool:
    return torch.equal(value, before.to(value))  # the model may have moved since


def _refuse_disabled(model: nn.Module) -> None:
    known = _of(model)
    resting = known is not None and known.blocks > 0
    if resting or any(layer.is_silenced for layer in seeded_modules(model).values()):
        raise LifecycleError(
            "the model is in a block of esper.disabled(model), or was copied there, and is its "
            "host alone; leave the block first, and make copies outside of it"
        )


def head_names(model: nn.Module) -> list[str]:
    """Plain names of the parameters of all heads."""
    known = _of(model)
    parameters = named_host(model)
    names = trainable(model) if known is None else known.host_head
    return [name for name in names if name in parameters]


def adapter_names(model: nn.Module) -> list[str]:
    """Names of a model's adapters, the one that is on first."""
    known = _of(model)
    if known is None:
        return [DEFAULT] if any(la.contributions() for la in seeded_modules(model).values()) else []
    return [known.active, *known.others]


def add_adapter(model: nn.Module, name: str, adapter: Adapter) -> None:
    """Put an adapter beside those that a model has, and turn it on."""
    begin_adapter(model, name, list(adapter.head))
    try:
        _put(model, adapter)
    except EsperError:
        drop_adapter(model, name)
        raise


def set_adapter(model: nn.Module, name: str) -> None:
    """Turn an adapter on, and the one that was on off; its outputs are what they were, bit for bit.

    Raises:
        ConfigError: if there is none of this name.
        LifecycleError: if a kernel of the other is under way: finish its adaptation first; or the
            model is in a block of `disabled`.
    """
    known = _of(model)
    if name not in adapter_names(model):
        raise ConfigError(unknown_name("adapter", name, adapter_names(model)))
    _refuse_disabled(model)
    if known is None or name == known.active:
        return
    known.others[known.active] = current(model)
    _put(model, known.others.pop(name))
    known.active = name


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The host alone, its head as it was before any adapter, bit for bit.

    For all threads, until the last of the blocks that overlap ends. Meanwhile no adapter is
    begun, loaded, switched, reported on, saved, merged or exported: that is a `LifecycleError`.

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
    known = _of(model)
    with ExitStack() as stack:
        with _LOCK:
            for layer in seeded_modules(model).values():
                stack.enter_context(layer.silenced())
            _rest(model, known)
        try:
            yield
        finally:
            with _LOCK:
                stack.close()
                _wake(model, known)


def _rest(model: nn.Module, known: _Adapters | None) -> None:
    if known is None:
        return
    if not known.blocks:
        values = named_values(model)
        known.resting = copied({name: values[name] for name in known.host_head})
        _put_head(model, known.host_head)
    known.blocks += 1


def _wake(model: nn.Module, known: _Adapters | None) -> None:
    if known is None:
        return
    known.blocks -= 1
    if not known.blocks:
        _put_head(model, known.resting)
        known.resting = {}


def _put(model: nn.Module, adapter: Adapter) -> None:
    layers = {la.name: la for la in seeded_modules(model).values() if isinstance(la, KasminaLayer)}
    for name, layer in layers.items():
        if layer.fossils or name in adapter.kernels:
            layer.put_absorbed(adapter.kernels.get(name, []))
    known = _of(model)
    _put_head(model, adapter.head if known is None else {**known.host_head, **adapter.head})


def _put_head(model: nn.Module, values: dict[str, Tensor]) -> None:
    held = named_values(model) if values else {}
    with torch.no_grad():
        for name, value in values.items():
            if held[name].shape == value.shape:  # not so of an observer that grew since
                held[name].copy_(value)
