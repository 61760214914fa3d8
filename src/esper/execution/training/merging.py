"""Merging: parameters of a kernel become rows or columns of the host's, with optimizer state.

Source:
    Kingma & Ba (2015), Adam, section 3: a moment is read after division by 1 - beta^t. A row that
    trained for fewer steps t_k than its parameter's t_h reads the same after a merge if its moment
    is multiplied by (1 - beta^t_h) / (1 - beta^t_k).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.execution.kernel import Join

_PLAIN = frozenset(
    {"momentum_buffer", "square_avg", "acc_delta", "sum", "grad_avg", "prev", "exp_inf"}
)
"""State that is read as it is; what a new row lacks begins at zero."""

_MOMENTS: Mapping[str, int] = {"exp_avg": 0, "exp_avg_sq": 1, "max_exp_avg_sq": 1}
"""Moments that are read after division by 1 - beta^step, and which of the betas is theirs."""


def misunderstood(optimizer: Any, host: Tensor) -> str:
    """Name of state of the host's parameter that cannot be widened; empty if there is none.

    What has the parameter's shape must be of a known kind, and numbers have no shape.
    """
    for key, value in optimizer.state.get(host, {}).items():
        if isinstance(value, Tensor) and (value.numel() != 1 or value.shape == host.shape != ()):
            known = key in _PLAIN or key in _MOMENTS
            if not known or value.shape != host.shape:
                return str(key)
    return ""


def carried(optimizer: Optimizer, joins: Sequence[Join]) -> dict[str, Any]:
    """State of one parameter of the host with that of its new rows, and then columns, in it."""
    host = joins[0].host
    found = dict(optimizer.state.get(host, {}))
    for key, value in found.items():
        if isinstance(value, Tensor) and value.shape == host.shape and value.ndim > 0:
            for join in joins:
                piece = optimizer.state.get(join.piece, {}).get(key)
                if piece is None or piece.shape != join.piece.shape:
                    piece = torch.zeros_like(join.piece, dtype=value.dtype)
                piece = piece * _scale(optimizer, join, key)
                found[key] = join.whole(found[key], piece.to(value.dtype))
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
    if key not in _MOMENTS:
        return 1.0
    ours, theirs = (_unbiased(optimizer, p, key) for p in (join.host, join.piece))
    return ours / theirs if ours and theirs else 1.0


def _unbiased(optimizer: Optimizer, parameter: Tensor, key: str) -> float:
    """Divisor of a moment when it is read; 0 if it is read as it is."""
    state = optimizer.state.get(parameter, {})
    if key == "exp_avg" and "mu_product" in state:  # NAdam, whose momentum varies
        return 1 - float(state["mu_product"])
    betas = _group_of(optimizer, parameter).get("betas")
    return 0.0 if betas is None else float(1 - betas[_MOMENTS[key]] ** float(state.get("step", 0)))


def _group_of(optimizer: Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group
    return {}
