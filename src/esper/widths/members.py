"""Members of a site: the modules that grow with its units, and which of their axes do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Role = Literal["producer", "norm", "consumer"]

_COUNTS: Mapping[Role, tuple[str, ...]] = {
    "producer": ("out_features", "out_channels", "nf"),
    "consumer": ("in_features", "in_channels", "nx"),
    "norm": ("num_features", "in_channels", "out_channels", "groups"),
}
"""Attributes that say how many units there are."""


@final
@dataclass(frozen=True, slots=True)
class Member:
    """A module that grows with the units of a site.

    Attributes:
        name: Its dotted name.
        role: A producer gives the units, a norm has a channel for each, a consumer reads them.
        outer: Repetitions of all units, one after another, on the module's axis.
        inner: Consecutive places of each unit on the module's axis.
    """

    name: str
    role: Role
    outer: int = 1
    inner: int = 1

    @property
    def places(self) -> int:
        """Rows, channels or columns that one more unit adds."""
        return self.outer * self.inner


def is_layer(module: nn.Module) -> bool:
    """True for a linear layer or an ungrouped convolution, whose units can be followed."""
    if isinstance(module, _ConvNd):
        return module.groups == 1 and _is_plain(module)
    return (isinstance(module, nn.Linear) and _is_plain(module)) or _is_conv1d(module)


def is_norm(module: nn.Module) -> bool:
    """True for what has a channel for each unit: a batch norm, or a depthwise convolution."""
    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        return 1 < module.groups == module.in_channels and _is_plain(module)
    return isinstance(module, _BatchNorm) and _is_plain(module, affine=module.affine)


def _is_plain(module: nn.Module, *, affine: bool = True) -> bool:
    """True if PyTorch's own forward computes the module from parameters, and none is derived."""
    forward = getattr(type(module), "forward", None)
    if "forward" in vars(module) or not getattr(forward, "__module__", "").startswith("torch.nn"):
        return False
    weight = module._parameters.get("weight")
    return not affine or (weight is not None and weight.is_floating_point())


def _is_conv1d(module: nn.Module) -> bool:
    """True for the linear layer of transformers' GPT-2, whose weight is (in, out)."""
    weight = module._parameters.get("weight")
    named = type(module).__name__ == "Conv1D" and "forward" not in vars(module)
    return named and weight is not None and weight.ndim == 2 and weight.is_floating_point()


def unit_axis(module: nn.Module, x: Tensor) -> int:
    """Axis of the features or channels of a module's input and output."""
    if isinstance(module, _ConvNd):
        return x.ndim - len(module.kernel_size) - 1
    return 1 if isinstance(module, _BatchNorm) else x.ndim - 1


def multiplier(module: nn.Module) -> int:
    """Output channels of a norm for each of its input channels."""
    return module.out_channels // module.in_channels if isinstance(module, _ConvNd) else 1


def growing(module: nn.Module, role: Role) -> list[tuple[str, int]]:
    """Tensors of a module that grow with the units, by name, each with the dimension that does."""
    transposed = isinstance(module, _ConvTransposeNd) or _is_conv1d(module)
    if role == "consumer":
        return [("weight", 0 if transposed else 1)]
    named = {"weight": int(transposed and role == "producer"), "bias": 0}
    if role == "norm":
        named |= {"running_mean": 0, "running_var": 0}
    held = module._parameters | module._buffers
    return [(name, dim) for name, dim in named.items() if held.get(name) is not None]


def counts(module: nn.Module, member: Member) -> dict[str, int]:
    """Attributes of a member that say how many units it has, as they are with one more."""
    found: dict[str, int] = {}
    for name in _COUNTS[member.role]:
        value: Any = vars(module).get(name)
        single = member.role == "norm" and name in ("in_channels", "groups")
        if isinstance(value, int):
            found[name] = value + (1 if single else member.places)
    return found


def cost(modules: Mapping[str, nn.Module], members: Sequence[Member]) -> int:
    """Parameters that one more unit adds to these modules."""
    shapes: dict[tuple[str, str], list[int]] = {}
    before = 0
    for member in members:
        module = modules[member.name]
        for name, dim in growing(module, member.role):
            tensor = module._parameters.get(name)
            if tensor is not None:
                if (member.name, name) not in shapes:
                    shapes[member.name, name] = list(tensor.shape)
                    before += tensor.numel()
                shapes[member.name, name][dim] += member.places
    return sum(map(math.prod, shapes.values())) - before
