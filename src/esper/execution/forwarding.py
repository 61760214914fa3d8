"""A layer that stands in for its host: attributes are read from it and written to it.

``layer.weight = tied``, ``layer.bias = None``, flags, and the tools that change a layer in place
(``weight_norm``, ``spectral_norm``, ``prune``, the parametrizations) act on the host, so that code
written for the plain layer goes on working.
"""

import inspect
from typing import Any, ClassVar, final

from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

_TOOLS = "torch.nn.utils."

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)
"""Tables of the hooks on calls of a module."""


class _Twinned(type):
    """Class whose properties, added later, go to a second class too.

    ``torch.nn.utils.parametrize`` gives a layer a class of its own and then adds a property for
    each tensor; the host, which reads the tensors in its ``forward``, needs them as well.
    """

    twin: type

    @override
    def __setattr__(cls, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, property) and "twin" in cls.__dict__:
            setattr(cls.twin, name, value)

    @override
    def __delattr__(cls, name: str) -> None:
        super().__delattr__(name)
        if "twin" in cls.__dict__ and name in cls.twin.__dict__:
            delattr(cls.twin, name)


@final
class _Table(dict[str, Any]):
    """Parameters or buffers of the host for whoever asks by name; empty for whoever lists them."""

    def __init__(self, modules: dict[str, Any], table: str) -> None:
        super().__init__()
        self.modules, self.table = modules, table

    @property
    def _of_host(self) -> dict[str, Any]:
        return getattr(self.modules["host"], self.table)  # type: ignore[no-any-return]

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._of_host

    @override
    def __getitem__(self, name: str) -> Any:
        return self._of_host[name]

    @override
    def __setitem__(self, name: str, value: Any) -> None:
        self._of_host[name] = value

    @override
    def __delitem__(self, name: str) -> None:
        del self._of_host[name]


class Forwarding(nn.Module, metaclass=_Twinned):
    """Module that forwards attributes which it does not have itself to its submodule ``host``.

    Its own are the names in ``OWN``, those of its class, and those that begin with an underscore.
    """

    OWN: ClassVar[frozenset[str]] = frozenset({"host", "training"})

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host
        self.__dict__["_parameters"] = _Table(self._modules, "_parameters")
        self.__dict__["_buffers"] = _Table(self._modules, "_buffers")

    @override
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            host = self.__dict__.get("_modules", {}).get("host")
            if host is None or name.startswith("_"):
                raise
            return getattr(host, name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        host = self._host_of(name)
        if name == "__class__":
            _give_class(self._modules["host"], value)
        if host is None:
            super().__setattr__(name, value)
        else:
            setattr(host, name, value)

    @override
    def __delattr__(self, name: str) -> None:
        host = self._host_of(name)
        if host is None:
            super().__delattr__(name)
        else:
            delattr(host, name)

    @override
    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        self.host.register_parameter(name, param)

    @override
    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        self.host.register_buffer(name, tensor, persistent)

    @override
    def add_module(self, name: str, module: nn.Module | None) -> None:
        self.host.add_module(name, module)

    def release_host(self) -> nn.Module:
        """Host, to be used without the layer: with the hooks of PyTorch's tools, as weight_norm."""
        for key, hook in list(self._forward_pre_hooks.items()):
            if type(hook).__module__.startswith(_TOOLS):
                self.host._forward_pre_hooks[key] = self._forward_pre_hooks.pop(key)
        return self.host

    def move_hooks(self, place: nn.Module) -> None:
        """Give the user's hooks on calls of the layer to what takes its place."""
        for name in _HOOKS:
            own, there = vars(self)[name], vars(place)[name]
            if there:  # of a host that had hooks before it was wrapped: those run first
                there.update(own)
            elif own:  # the same table, so handles of the hooks still remove them
                vars(place)[name] = own
        if self._is_full_backward_hook is not None:
            place._is_full_backward_hook = self._is_full_backward_hook

    def _host_of(self, name: str) -> Any:
        """Host, if the attribute is its affair."""
        if name.startswith("_") or name in self.OWN or hasattr(type(self), name):
            return None
        return self.__dict__.get("_modules", {}).get("host")


def _give_class(host: nn.Module | None, given: _Twinned) -> None:
    """Parametrize the host as the layer, which is given this class, or undo it."""
    if given.__name__.startswith("Parametrized"):
        parametrize._inject_new_class(host)  # type: ignore[arg-type]
        given.twin = type(host)
    else:
        host.__class__ = type(host).__bases__[0]


def first_argument(host: nn.Module) -> str:
    """Name of the first argument of a module's ``forward``; empty if it has no signature."""
    try:
        return next(iter(inspect.signature(host.forward).parameters), "")
    except (TypeError, ValueError):
        return ""  # compiled code has no signature; it is called by position
