"""First values of a kernel, set against the data: its rows read directions that do not correlate.

Rows that are drawn without a look at the data mostly see the same few directions of it, those of
its mean and largest variance. Multiplied by the inverse root of the input's covariance they see all
alike; shifted and scaled by what they give, every hidden value has mean zero, where there is a
bias, and the same spread. That is the spread the drawn rows gave, so that no step of an optimizer
becomes larger; few samples tell neither, and change nothing. What that is worth was measured
(``docs/decisions/0050-whitening.md``).

Source:
    LeCun, Bottou, Orr & Mueller (1998), Efficient BackProp, section 4.3 (inputs without mean or
    correlation, of equal variance); Desjardins et al. (2015), Natural Neural Networks, section 3
    (the same within a network); Mishkin & Matas (2016), All you need is a good init, section 3
    (layer by layer, from a batch, to a given spread).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil, gcd, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# N samples, F features that a row reads, h rows

_RIDGE = 0.1
"""Variance that is added to every direction, relative to the mean variance."""
_SAMPLES = 1024
"""Samples, at most, from which a covariance is told."""
_FEWEST = 32
"""Samples, at least: rows that are set by two have many times their spread on all others."""
_ALIKE = 1e-10
"""Variance, relative to the mean square, below which samples differ by rounding."""
_PLACES = 8
"""Places along each axis of a picture, at most."""

Map = nn.Linear | nn.Conv1d | nn.Conv2d


def _mine(x_NF: Tensor) -> Tensor:
    return x_NF


@contextmanager
def whitening(
    kernel: nn.Module, share: Callable[[Tensor], Tensor] = _mine, *, own: bool = True
) -> Iterator[None]:
    """Whiten the rows of each map of a kernel, when it is first called, against what it reads.

    Maps are its linear layers and convolutions, in the order of calls, so that each reads what the
    whitened ones before it give. Those that are zero stay so, and those whose weight or bias is
    computed, as by a weight norm. An input that is not finite, the same everywhere, or of few
    samples changes nothing.

    Args:
        kernel: The kernel; its parameters are changed in place.
        share: Takes samples (N, F) of this process, and gives those of all.
        own: False if what the kernel is called with is another process's, and counts there.
    """
    handles = [
        module.register_forward_pre_hook(
            _Whitener(share if own else lambda x: share(x[:0])), with_kwargs=True
        )
        for module in kernel.modules()
        if isinstance(module, Map) and _is_plain(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_plain(module: Map) -> bool:
    """True if the module's weight and bias are parameters, and not computed from others."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return "weight" in own and ("bias" in own or module.bias is None)


class _Whitener:
    def __init__(self, share: Callable[[Tensor], Tensor]) -> None:
        self._share = share
        self._done = False

    def __call__(self, module: Map, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if self._done:
            return
        self._done = True
        x: Tensor = args[0] if args else named["input"]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            _whiten(module, x.detach(), self._share)


def _whiten(module: Map, x: Tensor, share: Callable[[Tensor], Tensor]) -> None:
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    rows = module.weight.flatten(1).cpu().double().chunk(groups)
    biases = [] if module.bias is None else module.bias.chunk(groups)
    for group, weight_hF in enumerate(rows):
        x_NF = _some(share(_samples(module, x, group).cpu().double()))
        if len(x_NF) < _FEWEST or not torch.isfinite(x_NF).all() or not weight_hF.any():
            continue
        found = _whitened(weight_hF, x_NF)
        if found is None or not all(
            torch.isfinite(one.to(module.weight.dtype)).all() for one in found
        ):
            continue
        place = module.weight.chunk(groups)[group]
        place.copy_(found[0].reshape(place.shape))
        if biases:
            biases[group].copy_(found[1])


def _some(x_NF: Tensor) -> Tensor:
    """Samples of all processes, no more than are needed; always the same."""
    if len(x_NF) <= _SAMPLES:
        return x_NF
    generator = torch.Generator(device="cpu").manual_seed(0)
    order = torch.randperm(len(x_NF), generator=generator, device="cpu")
    return x_NF[order[:_SAMPLES]]


def _samples(module: Map, x: Tensor, group: int) -> Tensor:
    """Sample (N, F) of what the rows of a group read."""
    if isinstance(module, nn.Linear):
        x_NF = x.flatten(0, -2) if x.dim() > 1 else x[None]
        return x_NF[_rows(len(x_NF), len(x_NF) // max(len(x), 1) or 1).to(x.device)]
    return _patches(module, x, group)


def _rows(count: int, places: int) -> Tensor:
    """Rows at equal distances, no more than are needed.

    Args:
        count: Rows that there are: those of one example after those of another.
        places: Rows of an example; all of its places are seen alike.

    Example:
        Of 4,096 rows every fourth; of eight places that would be the first and the fifth alone.

        >>> sorted({int(row) % 8 for row in _rows(4096, 8)})
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    step = max(1, ceil(count / _SAMPLES))
    alike = gcd(step, places)
    rows = torch.arange(0, count, step, device="cpu")
    rows += torch.arange(len(rows), device="cpu") // (places // alike) % alike
    return rows[rows < count]


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor, group: int) -> Tensor:
    """Patches (N, F) that the filters of a group see, at a few places of every example."""
    read = module.weight.shape[1]
    axes = len(module.kernel_size)
    if x.dim() == axes + 1:
        x = x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x.narrow(1, group * read, read), module._reversed_padding_repeated_twice, mode)
    patches = padded  # (B, F, places..., extents of a filter...), of which none is copied
    for axis in range(axes):
        size, every = module.kernel_size[axis], module.dilation[axis]
        step = module.stride[axis]
        step *= max(1, ceil((padded.shape[2 + axis] // step) / _PLACES))
        patches = patches.unfold(2 + axis, (size - 1) * every + 1, step)[..., ::every]
    patches = patches.movedim(1, 1 + axes)
    extents = patches.shape[: 1 + axes]
    count = extents.numel()
    rows = _rows(count, count // max(extents[0], 1) or 1)
    places = torch.unravel_index(rows.to(x.device), extents)
    return patches[places].flatten(1)


def _whitened(weight_hF: Tensor, x_NF: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows and bias of a map; ``None`` if all samples are alike."""
    count, features = x_NF.shape
    mean_F = x_NF.mean(dim=0)
    centred_NF = x_NF - mean_F
    # The eigenvectors of the smaller of the two products give those of the covariance.
    few = count < features
    square = centred_NF @ centred_NF.T if few else centred_NF.T @ centred_NF
    if not torch.isfinite(square).all():
        return None
    variances, vectors = torch.linalg.eigh(square / count)
    if float(variances.sum()) <= _ALIKE * float(x_NF.square().sum()) / count:
        return None
    seen = variances > 1e-9 * variances[-1]
    variances, vectors = variances[seen], vectors[:, seen]
    if few:
        vectors = centred_NF.T @ vectors / (count * variances).sqrt()
    spread = (centred_NF @ weight_hF.T).square().mean().sqrt()
    ridge = _RIDGE * (1 + features / count) * float(variances.sum()) / features
    factors = (variances + ridge).rsqrt() - 1 / sqrt(ridge)
    weight_hF = weight_hF / sqrt(ridge) + weight_hF @ vectors * factors @ vectors.T
    spread_h = (centred_NF @ weight_hF.T).square().mean(dim=0).sqrt()
    scale_h = spread / spread_h.clamp_min(1e-3 * float(spread_h.mean()))
    weight_hF = weight_hF * scale_h[:, None]
    return weight_hF, -weight_hF @ mean_F
