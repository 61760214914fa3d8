"""A copy of a model as it stands in a loop, with what ``copy.deepcopy`` refuses.

After a batch modules hold tensors that were computed, as a router's loss or the weight of a pruned
layer; the copy has their values, detached. An attribute that cannot be copied, as a lock or a log
writer, is shared.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeVar, cast, final

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.execution.concealed import every_module

M = TypeVar("M", bound=nn.Module)

_PARTS = ("_parameters", "_buffers", "_modules")
_REFUSALS = (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError)


def copy_model(model: M) -> M:
    """Deep copy of a model, not compiled.

    Raises:
        ConfigError: if one of its modules, parameters or buffers cannot be copied.
    """
    model = cast("M", getattr(model, "_orig_mod", model))
    with _Detaching():
        try:
            return deepcopy(model)
        except _REFUSALS:
            shared = {id(value): value for value in _uncopied_attributes(model)}
        try:
            return deepcopy(model, shared)
        except _REFUSALS as error:
            raise ConfigError(
                f"the model, a {type(model).__name__}, cannot be copied: {error}; copy.deepcopy "
                "must work on each of its modules, parameters and buffers"
            ) from error


def _uncopied_attributes(model: nn.Module) -> Iterator[Any]:
    modules = list(every_module(model))
    alone = {id(module): module for module in modules}  # the others stay what they are
    for module in modules:
        for name, value in vars(module).items():
            if name not in _PARTS:
                yield from _uncopied(value, alone)


def _uncopied(value: Any, alone: Mapping[int, nn.Module]) -> Iterator[Any]:
    """A value if it cannot be copied; of a plain container, those of its items."""
    try:
        deepcopy(value, dict(alone))
    except _REFUSALS:
        if isinstance(value, Mapping | list | tuple):
            for item in value.values() if isinstance(value, Mapping) else value:
                yield from _uncopied(item, alone)
        else:
            yield value


@final
class _Detaching(TorchFunctionMode):
    """Lets ``deepcopy`` copy tensors that were computed, without their graph."""

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))
