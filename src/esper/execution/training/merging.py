"""Merging: parameters of a kernel become rows or columns of the host's, with optimizer state.

Source:
    Kingma & Ba (2015), Adam, section 3: a moment is read after division by 1 - beta^t. A row that
    trained for fewer steps t_k than its parameter's t_h reads the same after a merge if its moment
    is multiplied by (1 - beta^t_h) / (1 - beta^t_k).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.execution.kernel import Join

_PLAIN = frozenset({"momentum_buffer", "square_avg", "acc_delta", "sum", "grad_avg", "prev"})
"""State that is read as it is; what a new row lacks begins at zero."""

_MOMENTS: Mapping[str, int] = {
    "exp_avg": 0,
    "exp_avg_sq": 1,
    "max_exp_avg_sq": 1,
    "exp_inf": 0,
}
"""Moments that are read after division by 1 - beta^step, and which of the betas is theirs."""


def understood(optimizer: Any, join: Join) -> bool:
    """True if all state of the host's parameter has its shape or none, and is of a known kind."""
    return all(
        not isinstance(value, Tensor)
        or value.ndim == 0
        or value.numel() == 1
        or (value.shape == join.host.shape and (key in _PLAIN or key in _MOMENTS))
        for key, value in optimizer.state.get(join.host, {}).items()
    )


def carried(optimizer: Optimizer, join: Join) -> dict[str, Any]:
    """State of the host's parameter with that of the new rows or columns in it."""
    state = optimizer.state.get(join.host, {})
    theirs = optimizer.state.get(join.piece, {})
    found = dict(state)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == join.host.shape and value.ndim > 0:
            piece = theirs.get(key)
            if piece is None or piece.shape != join.piece.shape:
                piece = torch.zeros_like(join.piece, dtype=value.dtype)
            piece = piece * _scale(optimizer, join, key)
            found[key] = join.whole(value, piece.to(value.dtype))
    return found


def fit_states(optimizer: Optimizer) -> None:
    """Cut, or extend by zeros, state of the shape that a parameter had before it changed."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if (
                isinstance(value, Tensor)
                and isinstance(parameter, Tensor)
                and value.ndim == parameter.ndim > 0
                and value.shape != parameter.shape
                and key in {*_PLAIN, *_MOMENTS}
            ):
                fitted = value.new_zeros(parameter.shape)
                common = tuple(
                    slice(min(a, b)) for a, b in zip(value.shape, parameter.shape, strict=True)
                )
                fitted[common] = value[common]
                state[key] = fitted


def _scale(optimizer: Optimizer, join: Join, key: str) -> float:
    """Factor that keeps a moment as it is read under the step count of the host's parameter."""
    betas = _group_of(optimizer, join.host).get("betas")
    steps = [_step(optimizer, p) for p in (join.host, join.piece)]
    if key not in _MOMENTS or betas is None or not all(steps):
        return 1.0
    ours, theirs = (1 - float(betas[_MOMENTS[key]]) ** step for step in steps)
    return float(ours / theirs)


def _step(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    return float(optimizer.state.get(parameter, {}).get("step", 0))


def _group_of(optimizer: Optimizer, parameter: nn.Parameter) -> Mapping[str, Any]:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group
    return {}
