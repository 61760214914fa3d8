"""First values of a kernel, set against the data: its rows read directions that do not correlate.

Rows that are drawn without a look at the data mostly see the same few directions of it, those of
its mean and largest variance. Multiplied by the inverse root of the input's covariance they see all
alike; shifted and scaled by what they give, every hidden value has mean zero, where there is a
bias, and the same spread. That is the spread the drawn rows gave, so that no step of an optimizer
becomes larger. What that is worth was measured
(``docs/decisions/0050-whitening.md``).

Source:
    LeCun, Bottou, Orr & Mueller (1998), Efficient BackProp, section 4.3 (inputs without mean or
    correlation, of equal variance); Desjardins et al. (2015), Natural Neural Networks, section 3
    (the same within a network); Mishkin & Matas (2016), All you need is a good init, section 3
    (layer by layer, from a batch, to a given spread).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# N samples, F features that a row reads, h rows

_RIDGE = 0.1
"""Variance that is added to every direction, relative to the mean variance."""
_SAMPLES = 1024
"""Samples, at most, from which a covariance is told."""
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
    whitened ones before it give. Those that are zero stay so; an input that is not finite, or the
    same everywhere, changes nothing.

    Args:
        kernel: The kernel; its parameters are changed in place.
        share: Takes samples (N, F) of this process, and gives those of all.
        own: False if what the kernel is called with is another process's, and counts there.
    """
    handles = [
        module.register_forward_pre_hook(_Whitener(share if own else lambda x: share(x[:0])))
        for module in kernel.modules()
        if isinstance(module, Map)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Whitener:
    def __init__(self, share: Callable[[Tensor], Tensor]) -> None:
        self._share = share
        self._done = False

    def __call__(self, module: Map, args: tuple[Tensor, ...]) -> None:
        if self._done:
            return
        self._done = True
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            _whiten(module, args[0].detach(), self._share)


def _whiten(module: Map, x: Tensor, share: Callable[[Tensor], Tensor]) -> None:
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    rows = module.weight.flatten(1).cpu().double().chunk(groups)
    biases = [] if module.bias is None else module.bias.chunk(groups)
    for group, weight_hF in enumerate(rows):
        x_NF = _thinned(share(_samples(module, x, group).cpu().double()))
        if len(x_NF) < 2 or not torch.isfinite(x_NF).all() or not weight_hF.any():
            continue
        found = _whitened(weight_hF, x_NF)
        if found is None:
            continue
        place = module.weight.chunk(groups)[group]
        place.copy_(found[0].reshape(place.shape))
        if biases:
            biases[group].copy_(found[1])


def _samples(module: Map, x: Tensor, group: int) -> Tensor:
    """Sample (N, F) of what the rows of a group read."""
    if isinstance(module, nn.Linear):
        x_NF = x.flatten(0, -2) if x.dim() > 1 else x[None]
    else:
        x_NF = _patches(module, x, group)
    return _thinned(x_NF)


def _thinned(x_NF: Tensor) -> Tensor:
    """Samples at equal distances, no more than are needed."""
    return x_NF[:: max(1, ceil(len(x_NF) / _SAMPLES))]


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor, group: int) -> Tensor:
    """Patches (N, F) that the filters of a group see, at a few places of every example."""
    read = module.weight.shape[1]
    axes = len(module.kernel_size)
    if x.dim() == axes + 1:
        x = x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x.narrow(1, group * read, read), module._reversed_padding_repeated_twice, mode)
    stride = [
        step * max(1, ceil((size // step) / _PLACES))
        for step, size in zip(module.stride, padded.shape[2:], strict=True)
    ]
    count = module.weight[0].numel()
    each = torch.eye(count, dtype=x.dtype, device=x.device)
    each = each.reshape(count, *module.weight.shape[1:])
    convolve = F.conv1d if axes == 1 else F.conv2d
    seen = convolve(padded, each, stride=stride, dilation=module.dilation)
    return seen.flatten(2).transpose(1, 2).flatten(0, 1)


def _whitened(weight_hF: Tensor, x_NF: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows and bias of a map; ``None`` if all samples are alike."""
    count, features = x_NF.shape
    mean_F = x_NF.mean(dim=0)
    centred_NF = x_NF - mean_F
    # The eigenvectors of the smaller of the two products give those of the covariance.
    few = count < features
    square = centred_NF @ centred_NF.T if few else centred_NF.T @ centred_NF
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
