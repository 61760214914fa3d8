"""Operations of ATen: where they take the units of the tensors that they read.

An operation is followed only where it treats every unit alike and by itself. All others are
refused, by name.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from esper.widths.groups import Axis, Group, joined, part

Tags = dict[int, Axis]
"""Axes of a tensor that hold units, by dimension."""

# What PyTorch does not mark as pointwise, and is.
_POINTWISE = re.compile(
    r"_to_copy|alias|clone|contiguous|detach|hardswish_?|lift_fresh|log_sigmoid_forward|"
    r"masked_fill_|native_dropout|_prelu_kernel|rrelu_with_noise|\w+_like|"
    r"(bernoulli|exponential|fill|normal|uniform|zero)_?"
)
_REDUCES = re.compile(
    r"all|any|(arg)?(max|min)|a(max|min)|linalg_vector_norm|logsumexp|mean|median|norm|prod|sum|"
    r"(std|var)(_mean)?"
)
_MIXES = re.compile(r"_?(log_|safe_)?softmax|cumprod|cumsum")
_PICKS = re.compile(r"flip|index_select|roll|select|slice|sort|topk|unbind")
_ATTENDS = re.compile(r"_scaled_dot_product_\w*attention\w*")
_OVER_PLACES = re.compile(r"\w*(pool|upsample_\w+|reflection_pad|replication_pad)([123])d\w*")

_UNKNOWN = "is not an operation that units can be followed through"
_UNLIKE = "joins units that take different places"
_BY_OTHERS = "multiplies its units by others or by fixed weights"


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation.

    Attributes:
        name: Name of the operation, without its namespace and overload.
        given: Arguments by name, defaults included.
        tensors: Tensors among them.
        tags: Units of each of ``tensors``.
        outs: Tensors that it returned.
        pointwise: True if PyTorch marks it so.
    """

    name: str
    given: Mapping[str, Any]
    tensors: Sequence[Tensor]
    tags: Sequence[Tags]
    outs: Sequence[Tensor]
    pointwise: bool

    @property
    def x(self) -> Tensor:
        """First tensor that the operation reads."""
        return self.tensors[0]


Followed = list[Tags] | str
"""Units of each tensor that an operation returned; or what it does that ends the pursuit."""


def follow(call: Call) -> Followed:
    """Follow the units through an operation that reads some."""
    if call.pointwise or _POINTWISE.fullmatch(call.name):
        return _pointwise(call)
    if call.name.startswith("new_"):
        return [{} for _ in call.outs]
    if call.name in _RULES:
        return _RULES[call.name](call)
    if _ATTENDS.fullmatch(call.name):
        return _attention(call)
    return _UNKNOWN if any(call.tags[1:]) else _along(call)


def _pointwise(call: Call) -> Followed:
    return _alike(call, 0)


def _alike(call: Call, last: int) -> Followed:
    """Operations that treat all places alike, but for the last dimensions, of so many."""
    found: Tags = {}
    shape = call.outs[0].shape
    for dim in range(-len(shape), -last):
        pairs = zip(call.tensors, call.tags, strict=True)
        here = [(t.shape[dim], tags.get(t.ndim + dim)) for t, tags in pairs if t.ndim + dim >= 0]
        axes = [axis for _, axis in here if axis is not None]
        if not axes:
            continue
        if not all(joined(axes[0], axis) for axis in axes[1:]):
            return _UNLIKE
        if any(size != (1 if axis is None else shape[dim]) for size, axis in here):
            return "joins its units with a tensor that cannot grow"
        found[len(shape) + dim] = axes[0]
    return [found if out.shape == shape else {} for out in call.outs]


def _view(call: Call) -> Followed:
    (out,) = call.outs
    found: Tags = {}
    for dim, axis in call.tags[0].items():
        seen = _viewed(call.x.shape, out.shape, dim, axis.resolved())
        if seen is None or seen[0] in found:
            return "takes the axis of its units apart, as into heads"
        found[seen[0]] = seen[1]
    return [found]


def _viewed(
    old: Sequence[int], new: Sequence[int], dim: int, axis: Axis
) -> tuple[int, Axis] | None:
    """Dimension and axis of the units in another shape of the same elements.

    Example:
        Behind a convolution, (B, C, H, W) = (2, 8, 5, 5) to (2, 200): each unit takes 25 places.
    """
    units, stride = axis.group.units, math.prod(old[dim + 1 :]) * axis.inner
    for place, size in enumerate(new):
        step = math.prod(new[place + 1 :])
        if not step or stride % step or size * step % (stride * units):
            continue
        seen = Axis(axis.group, size * step // (stride * units), stride // step)
        if units > 1 or seen == axis:  # of one unit alone, many dimensions could be the axis
            return place, seen
    return None


def taken_apart(call: Call, dim: int, heads: int) -> Axis | None:
    """Let the units on a dimension be so many heads if a view takes them apart like that.

    Returns:
        Axis that holds each head's places once; ``None`` if the call is not such a view.

    Example:
        (B, T, F) = (2, 5, 24) to (2, 5, 3, 4, 2): three times 4 heads of 2 places.
    """
    if _RULES.get(call.name) is not _view:
        return None
    whole = call.tags[0][dim].resolved()
    places = whole.group.units // heads
    for size in range(2, places + 1):
        repeat = places // size
        axis = Axis(Group(heads), whole.outer * repeat, whole.inner * size)
        seen = _viewed(call.x.shape, call.outs[0].shape, dim, axis)
        # The places of a head lie in the dimensions behind it, and not in its own.
        if repeat * size == places and seen is not None and seen[1].inner == 1:
            whole.group.put_under(axis.group, repeat=repeat, within=size)
            return Axis(axis.group, inner=axis.inner)
    return None


def _along(call: Call) -> Followed:
    """Operations that leave every unit alone, unless they work along the dimension of the units."""
    name, ndim = call.name, call.x.ndim
    dims = _dims(call.given, ndim)
    picks, places = _PICKS.fullmatch(name), _OVER_PLACES.fullmatch(name)
    if name == "slice" and call.outs[0].shape == call.x.shape:
        dims = set()
    elif name == "native_layer_norm":
        dims = _last(len(call.given["normalized_shape"]), ndim)
    elif name == "constant_pad_nd":
        dims = _last(len(call.given["pad"]) // 2, ndim)
    elif places:
        dims = _last(int(places[2]), ndim)
    elif not (picks or _MIXES.fullmatch(name) or _REDUCES.fullmatch(name)):
        return _UNKNOWN
    if dims & call.tags[0].keys():
        return "picks among its units" if picks else "reads all its units at once"
    # The dimensions that a reduction, or a selection, does without.
    gone = dims if call.outs[0].ndim < ndim else set()
    found = {dim - sum(d < dim for d in gone): axis for dim, axis in call.tags[0].items()}
    return [found for _ in call.outs]


def _dims(given: Mapping[str, Any], ndim: int) -> set[int]:
    dims = given.get("dim", given.get("dims"))
    if dims is None or dims == []:
        return set(range(ndim))
    return {dim % max(ndim, 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def _last(count: int, ndim: int) -> set[int]:
    return set(range(ndim - count, ndim))


def _permute(call: Call) -> Followed:
    ndim, given = call.x.ndim, call.given
    order = [dim % ndim for dim in given.get("dims", range(ndim))]
    if "dims" not in given and ndim > 1:
        one, other = given.get("dim0", 0), given.get("dim1", 1)
        order[one], order[other] = order[other], order[one]
    return [{order.index(dim): axis for dim, axis in call.tags[0].items()}]


def _expand(call: Call) -> Followed:
    (out,) = call.outs
    more = out.ndim - call.x.ndim
    if any(out.shape[dim + more] != call.x.shape[dim] for dim in call.tags[0]):
        return "repeats its units"
    return [{dim + more: axis for dim, axis in call.tags[0].items()}]


def _split(call: Call) -> Followed:
    """Equal parts of the units, as of a fused gate and up projection, and what glu makes of two."""
    dim = call.given["dim"] % call.x.ndim
    axis = call.tags[0].get(dim)
    if axis is None:
        return [call.tags[0] for _ in call.outs]
    sizes = {out.shape[dim] for out in call.outs}
    cut = part(axis, call.x.shape[dim] // min(sizes)) if len(sizes) == 1 else None
    if cut is None:
        return "cuts its units in unequal parts"
    return [{**call.tags[0], dim: cut} for _ in call.outs]


def _cat(call: Call) -> Followed:
    dim = call.given.get("dim", 0) % call.outs[0].ndim
    # PyTorch leaves out tensors of shape (0,), as of a cache that is empty.
    full = [tags for x, tags in zip(call.tensors, call.tags, strict=True) if x.shape != (0,)]
    full = full or list(call.tags)
    for tags in full:
        if dim in tags or tags.keys() != full[0].keys():
            return "concatenates its units with others"
        if not all(joined(axis, tags[place]) for place, axis in full[0].items()):
            return _UNLIKE
    return [full[0]]


def _matmul(call: Call) -> Followed:
    """Product of matrices, (N, n, k) x (N, k, m): units on N, n or m are treated alike."""
    (first, second), last = call.tags, call.x.ndim - 1
    if last in first or last - 1 in second:
        return _BY_OTHERS
    found = _alike(call, 2)
    return found if isinstance(found, str) else [first | second | found[0]]


def _attention(call: Call) -> Followed:
    """Queries, keys, values (..., T, D) and a mask: units before those two are treated alike."""
    places = zip(call.tensors, call.tags, strict=True)
    inside = any(dim >= t.ndim - 2 for t, tags in places for dim in tags)
    return _BY_OTHERS if inside else _alike(call, 2)


def _index(call: Call) -> Followed:
    """Advanced indexing: dimensions before those that are indexed, and behind them, stay."""
    indices = call.given["indices"]
    at = [dim for dim, index in enumerate(indices) if index is not None]
    masks = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
    end = at[-1] + sum(mask.ndim - 1 for mask in masks)
    found: Tags = {}
    for dim, axis in call.tags[0].items():
        if any(call.tags[1:]) or at[0] <= dim <= end or len(at) <= at[-1] - at[0]:
            return "picks among its units"
        found[dim if dim < at[0] else call.outs[0].ndim - call.x.ndim + dim] = axis
    return [found]


def _convolution(call: Call) -> Followed:
    return "is grouped" if call.given["groups"] > 1 else _UNKNOWN


_RULES: dict[str, Callable[[Call], Followed]] = {
    "cat": _cat,
    "convolution": _convolution,
    "index": _index,
    **dict.fromkeys(("bmm", "mm"), _matmul),
    **dict.fromkeys(("expand", "repeat"), _expand),
    **dict.fromkeys(("glu", "split", "split_with_sizes"), _split),
    **dict.fromkeys(("permute", "t", "transpose"), _permute),
    **dict.fromkeys(("_unsafe_view", "_reshape_alias", "reshape", "squeeze"), _view),
    **dict.fromkeys(("unflatten", "unsqueeze", "view"), _view),
}
