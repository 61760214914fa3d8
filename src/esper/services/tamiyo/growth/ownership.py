"""Ownership of layers by engines: two of them would each go by their own verdicts."""

import gc
from collections.abc import Iterable
from weakref import ReferenceType, WeakKeyDictionary, ref

from esper.contracts.errors import ConfigError
from esper.execution.seeded import Seeded

_OWNERS: "WeakKeyDictionary[Seeded, ReferenceType[object]]" = WeakKeyDictionary()


def refuse_owned(layers: Iterable[Seeded]) -> None:
    """Refuse layers that another engine grows.

    Raises:
        ConfigError: if one has an owner that is alive and has not let go of it.
    """
    owned = [layer for layer in layers if _owner(layer) is not None]
    if owned:
        gc.collect()  # an engine that nobody holds any more may live in a circle of references
    for layer in owned:
        if _owner(layer) is not None:
            raise ConfigError(
                f"layer {layer.name!r} grows under another Tamiyo already; use that one, or call "
                "its finish() before you make the next"
            )


def own(layers: Iterable[Seeded], owner: object) -> None:
    """Make an engine the owner of its layers, for as long as it lives or until `let_go`."""
    for layer in layers:
        _OWNERS[layer] = ref(owner)


def let_go(layers: Iterable[Seeded], owner: object) -> None:
    """End the ownership of an engine that is finished."""
    for layer in layers:
        if _owner(layer) is owner:
            del _OWNERS[layer]


def _owner(layer: Seeded) -> object | None:
    found = _OWNERS.get(layer)
    return None if found is None else found()
