"""State of modules that is neither mode nor buffer: attributes, and parameters that are written.

Attributes of the model's modules are restored after every pass. What lies deeper, as a generator in
an augmentation or a tensor in a list, and what a function keeps outside the model is searched once,
by ``trial.try_passes``; the places that were seen changing are restored from then on.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from esper.execution.undoing.changes import Attributes, Kept, equal_bits, keep, restore
from esper.execution.undoing.deep import Mark, kept_at, kept_whole
from esper.execution.undoing.reachable import MANY, Found, Path, Step, is_draws, walk

_TABLES = (
    "_parameters",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_WRITERS: WeakSet[nn.Module] = WeakSet()
"""Modules whose forward was seen writing into their parameters, as a codebook's."""
_VERSIONS: WeakKeyDictionary[nn.Module, tuple[int, ...]] = WeakKeyDictionary()
"""Versions of the frozen parameters of modules at the last pass on the side."""
_PLAIN = frozenset({str, int, float, bool, tuple, type(None), torch.Size})
_PLACES: WeakKeyDictionary[nn.Module, list[Mark]] = WeakKeyDictionary()
"""Where a module keeps what was seen changing."""


class Place(NamedTuple):
    """Where something changed: the root, its place among those given, the path from it."""

    root: Any
    number: int
    path: Path
    restorable: bool
    parts: tuple[Step, ...] | None = None

    @property
    def marks(self) -> list[Mark]:
        """Marks of what is kept in passes on the side: the value, or those of its parts."""
        if self.parts is None:
            return [Mark(self.path, whole=True)]
        parts = [Mark((*self.path, part), whole=True) for part in self.parts]
        return [Mark(self.path, whole=False), *parts]


@final
class Reached:
    """Everything that is reached from some roots, as it was."""

    def __init__(
        self, roots: Iterable[Any], *, own: Iterable[nn.Module] = (), many: int = MANY
    ) -> None:
        ids = frozenset(map(id, own))
        seen: set[int] = set()
        self._held: list[tuple[Place, Any, Kept]] = []
        for number, root in enumerate(roots):
            for path, value in walk(root, own=ids, many=many):
                if id(value) not in seen:
                    seen.add(id(value))
                    self._hold(Found(path, value), root, number)

    def _hold(self, found: Found, root: Any, number: int) -> None:
        kept = keep(found.value)
        if kept is not None:
            place = Place(root, number, found.path, kept.restorable)
            self._held.append((place, found.value, kept))

    def changed(self) -> list[Place]:
        """Places whose value changed inside."""
        return [
            place._replace(parts=None if (parts := kept.parts()) is None else tuple(parts))
            for place, _, kept in self._held
            if kept.changed()
        ]

    def put_back(self) -> None:
        """Restore every value, in place."""
        for _, _, kept in self._held:
            kept.put_back()


@final
class ModuleState:
    """Attributes of modules, and what is known to change below them, to be put back."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._kept: list[Kept | None] = []
        modules = list(modules)
        # Esper's own modules look after themselves; hooks on them are the user's.
        own = [module for module in modules if not _is_espers(module)]
        for module in own:
            attributes = Attributes(module)
            self._kept.append(attributes)
            for value in _insides(attributes.values()):
                self._kept += [kept for _, _, kept in kept_whole(value)]
        for module in modules:
            self._kept += kept_at(module, _PLACES.get(module, ()))
        # A ScriptModule lacks some of the tables, or has them in another form, and adds nothing.
        tables = [vars(m).get(name) for m in own for name in _TABLES]
        self._registered = [(table, set(table)) for table in tables if isinstance(table, dict)]
        self._written = Parameters(m for m in own if m in _WRITERS or _has_moved(m))

    def put_back(self) -> None:
        """Restore everything, in place."""
        for kept in self._kept:
            if kept is not None:
                kept.put_back()
        self._written.put_back()
        for table, names in self._registered:
            for name in table.keys() - names:  # made in its first pass, as a head or a hook
                if not _is_espers(getattr(table[name], "__self__", None)):
                    del table[name]


@final
class Parameters:
    """Values of the parameters of modules."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._held = [
            (module, name, p, p.detach().clone())
            for module in modules
            for name, p in module._parameters.items()
            if p is not None
        ]

    def written(self) -> Iterator[nn.Module]:
        """Modules whose parameters were written or replaced."""
        # By value: writes to ``p.data`` leave the version of ``p`` as it is.
        for module, name, p, value in self._held:
            if dict(module._parameters).get(name) is not p or not equal_bits(p.detach(), value):
                yield module

    def put_back(self) -> None:
        """Restore the values, in place."""
        for module, name, p, value in self._held:
            if dict(module._parameters).get(name, module) is not p:
                module._parameters[name] = p
            if not equal_bits(p.detach(), value):
                restore(p, value)


@final
class Sources:
    """Random generators and counters of a source of batches, as of its samplers and data sets."""

    def __init__(self, source: Any) -> None:
        found = [value for _, value in walk(source, data=True)]
        self._draws = [keep(value) for value in found if is_draws(value)]
        self._counts = [(vars(v), _numbers(v)) for v in found if hasattr(v, "__dict__")]

    def put_back(self) -> None:
        """Restore them, in place."""
        for kept in self._draws:
            if kept is not None:
                kept.put_back()
        for attributes, numbers in self._counts:
            for name, number in numbers.items():
                if isinstance(attributes.get(name), int | float):
                    attributes[name] = number


def _has_moved(module: nn.Module) -> bool:
    """True if a frozen parameter was written since the last pass on the side: by forward, maybe."""
    frozen = [p for p in module._parameters.values() if p is not None and not p.requires_grad]
    if not frozen:
        return False
    now = tuple(-1 if p.is_inference() else p._version for p in frozen)
    before, _VERSIONS[module] = _VERSIONS.get(module), now
    return before is not None and before != now


def _is_espers(module: object) -> bool:
    # PyTorch gives a parametrized layer a class of its own, below the layer's.
    return any(kind.__module__.startswith("esper.") for kind in type(module).__mro__)


def mark_writers(modules: Iterable[nn.Module]) -> None:
    """Keep the parameters of these modules in every pass on the side from now on."""
    _WRITERS.update(modules)


def mark_places(places: Iterable[Place]) -> None:
    """Keep what is found in these places of modules in every pass on the side from now on."""
    for place in places:
        marks = _PLACES.setdefault(place.root, [])
        marks += [mark for mark in place.marks if mark not in marks]


def _insides(values: Iterable[Any]) -> Iterator[Any]:
    """Those among the values of attributes that can change inside, as lists and tensors."""
    for value in values:
        if type(value) not in _PLAIN and (
            isinstance(value, Tensor | list | dict | set)
            or type(value).__module__ in ("collections", "numpy")
            or is_draws(value)
        ):
            yield value


def _numbers(value: Any) -> Mapping[str, Any]:
    held = vars(value) if not isinstance(value, type) else {}
    return {n: x for n, x in held.items() if isinstance(x, int | float)}
