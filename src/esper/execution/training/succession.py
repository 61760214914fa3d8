"""Succession of optimizers: a loop that makes a new one in mid-run steps the old one no more.

Every optimizer of this process is noted when it steps, so that a kernel joins the one that trains
its host now, and not one that nobody steps.
"""

from collections.abc import Iterable
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_CLOCK = count()
_STEPS: WeakKeyDictionary[Optimizer, tuple[int, int]] = WeakKeyDictionary()
"""Times of the last step but one and of the last, for each optimizer that has stepped."""

_NEVER = (-1, -1)


def _note(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    _STEPS[optimizer] = (_STEPS.get(optimizer, _NEVER)[1], next(_CLOCK))


register_optimizer_step_post_hook(_note)


def successor(optimizer: Optimizer, trained: Iterable[nn.Parameter]) -> Optimizer | None:
    """The optimizer that trains these parameters in place of this one; ``None`` if there is none.

    It has stepped twice, and last of all, since this one did: those that take turns at the same
    parameters do not follow each other.
    """
    since = _STEPS.get(optimizer, _NEVER)[1]
    held = {id(parameter) for parameter in trained}
    later = {
        other: last
        for other, (before, last) in list(_STEPS.items())
        if before > since and not held.isdisjoint(_parameters(other))
    }
    return max(later, key=lambda other: later[other], default=None)


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
