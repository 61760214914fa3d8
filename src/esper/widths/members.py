"""Members of a site: the modules that grow with its units, and which of their axes do."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Role = Literal["producer", "norm", "consumer", "count"]

_COUNTS: Mapping[Role, tuple[str, ...]] = {
    "producer": ("out_features", "out_channels", "nf"),
    "consumer": ("in_features", "in_channels", "nx"),
    "norm": ("num_features", "in_channels", "out_channels", "groups"),
}
"""Attributes that say how many units there are."""

_HEADS = (
    "num_heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads",
    "n_heads", "n_head", "n_kv_heads", "n_kv_head", "nhead", "heads",
)  # fmt: skip
_HEAD_SIZES = ("head_dim", "head_size", "attention_head_size", "d_head", "dim_head")
_ALL_HEADS = (
    "all_head_size", "split_size", "embed_dim", "hidden_size",
    "inner_dim", "attn_dim", "n_embd", "d_model", "dim",
)  # fmt: skip
"""Attributes that say how many places all heads have together, if their value is that."""


@final
@dataclass(frozen=True, slots=True)
class Member:
    """A module that grows with the units of a site.

    Attributes:
        name: Its dotted name.
        role: A producer gives the units, a norm has a channel for each, a consumer reads them; a
            count has attributes that say how many heads there are.
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
    home = getattr(getattr(type(module), "forward", None), "__module__", "")
    if "forward" in vars(module) or not str(home).startswith("torch.nn"):  # a generated one: None
        return False
    weight = module._parameters.get("weight")
    return not affine or (weight is not None and weight.is_floating_point())


def _is_conv1d(module: nn.Module) -> bool:
    """True for the linear layer of transformers' GPT-2, whose weight is (in, out)."""
    weight = module._parameters.get("weight")
    named = type(module).__name__ == "Conv1D" and "forward" not in vars(module)
    return named and weight is not None and weight.ndim == 2 and weight.is_floating_point()


def heads_said(module: nn.Module) -> set[int]:
    """Numbers of heads that attributes of a module say."""
    return set(_integers(module, _HEADS).values())


def heads_in(module: nn.Module, units: int) -> list[int]:
    """Numbers of heads into which a module may take units apart, as its attributes say."""
    sizes = _integers(module, _HEAD_SIZES).values()
    numbers = [*sorted(heads_said(module)), *(units // size for size in sizes if size > 0)]
    return [heads for heads in dict.fromkeys(numbers) if heads > 1 and units % heads == 0]


def _integers(module: nn.Module, names: Sequence[str]) -> dict[str, int]:
    held: Mapping[str, Any] = vars(module)
    return {name: held[name] for name in names if type(held.get(name)) is int}


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
    if role == "count":
        return []
    transposed = isinstance(module, _ConvTransposeNd) or _is_conv1d(module)
    named = {"weight": int(transposed and role == "producer"), "bias": 0}
    if role == "consumer":
        named = {"weight": 0 if transposed else 1}
    elif role == "norm":
        named |= {"running_mean": 0, "running_var": 0}
    held = module._parameters | module._buffers
    return [(name, dim) for name, dim in named.items() if held.get(name) is not None]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that grows with the units of a site.

    Attributes:
        key: Role and number of its member, as ``"consumer1"``.
        member: The module's place in the site.
        module: The module.
        tensor: Name of the parameter or buffer.
        dim: Axis that grows.
    """

    key: str
    member: Member
    module: nn.Module
    tensor: str
    dim: int

    def shape_of_one(self) -> tuple[int, ...]:
        """Shape of what one unit adds."""
        shape = list(tensor_of(self.module, self.tensor).shape)
        shape[self.dim] = self.member.places
        return tuple(shape)


def parts_of(members: Sequence[tuple[Member, nn.Module]]) -> Iterator[Part]:
    """Tensors that grow with the units of a site; rows before the columns beside them."""
    numbered = sorted(enumerate(members), key=lambda pair: pair[1][0].role == "consumer")
    for number, (member, module) in numbered:
        for name, dim in growing(module, member.role):
            yield Part(f"{member.role}{number}", member, module, name, dim)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """Parameter or buffer of a module."""
    table: Mapping[str, Tensor | None] = (
        module._parameters if name in module._parameters else module._buffers
    )
    found = table[name]
    assert found is not None
    return found


def place(tensor: Tensor, value: Tensor, gradient: Tensor | None) -> None:
    """Give a parameter or buffer other values, of any shape; it stays the tensor that it is."""
    tensor.grad = None
    # A graph that is still alive, as that of the last loss, keeps the node that adds up gradients,
    # and with it the old shape; another type makes PyTorch let go of it.
    other = torch.float32 if tensor.dtype is torch.float64 else torch.float64
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = value
    tensor.grad = gradient


def counts(module: nn.Module, member: Member, units: int = 1) -> dict[str, int]:
    """Attributes of a member that say how many units it has, as they are with so many more."""
    if member.role == "count":
        heads = _integers(module, _HEADS)
        size = next(iter(heads.values()), 0) * member.inner
        whole = [name for name, n in _integers(module, _ALL_HEADS).items() if n == size]
        more = {name: n + units for name, n in heads.items()}
        return more | dict.fromkeys(whole, size + units * member.inner)
    found: dict[str, int] = {}
    for name, value in _integers(module, _COUNTS[member.role]).items():
        single = member.role == "norm" and name in ("in_channels", "groups")
        found[name] = value + units * (1 if single else member.places)
    return found


def join(whole: Tensor, piece: Tensor, dim: int, member: Member) -> Tensor:
    """Tensor of a member with the units of a piece behind its own.

    Along the other axes the piece may be shorter, if those have grown since; it gets zeros there.
    """
    short = [n - m for n, m in zip(whole.shape, piece.shape, strict=True)]
    short[dim] = 0
    if any(short):
        pad = [n for missing in reversed(short) for n in (0, missing)]
        piece = nn.functional.pad(piece, pad)
    if member.outer == 1:
        return torch.cat([whole, piece], dim)
    parts = [_apart(t, dim, member) for t in (whole, piece)]
    return torch.cat(parts, dim + 1).flatten(dim, dim + 1)


def first_units(whole: Tensor, units: int, dim: int, member: Member) -> Tensor:
    """The first units of a tensor of a member."""
    parts = _apart(whole, dim, member)
    return parts.narrow(dim + 1, 0, units * member.inner).flatten(dim, dim + 1)


def last_units(whole: Tensor, units: int, dim: int, member: Member) -> Tensor:
    """The last units of a tensor of a member."""
    parts = _apart(whole, dim, member)
    start = parts.shape[dim + 1] - units * member.inner
    return parts.narrow(dim + 1, start, units * member.inner).flatten(dim, dim + 1)


def _apart(tensor: Tensor, dim: int, member: Member) -> Tensor:
    """A tensor with the repetitions of all units on an axis of their own, before the units."""
    shape = tensor.shape
    return tensor.reshape(*shape[:dim], member.outer, -1, *shape[dim + 1 :])


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
