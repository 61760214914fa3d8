"""Trial of an optimizer, before the first batch: does it step, and can parameters join it?"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from esper.execution.training import optimizers
from esper.execution.training.seed_trainer import in_training_mode


def objection(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], *, alone: bool = False
) -> str:
    """Why an optimizer cannot train these parameters, and more that join it; empty if it can.

    It is stepped, more are added as a new group, and it is stepped again: the optimizer must be one
    made for the trial, over parameters of no consequence.

    Args:
        optimizer: Steps as the user's does; with a closure, or in two steps, where it wants that.
        parameters: Those that it holds, >= 1.
        alone: Whether it trains a seed: steps plainly, and nothing joins it.
    """
    devices = {p.device for p in parameters if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            in_training_mode(optimizer)
            _step(optimizer, parameters, plainly=alone)
            if not alone:
                more = [nn.Parameter(p.detach().clone()) for p in parameters]
                optimizers.adopt(optimizer, [(f"joined.{i}", p) for i, p in enumerate(more)])
                _step(optimizer, [*parameters, *more])
        # Optimizers of other libraries raise what they like: schedule-free a bare Exception.
        except Exception as error:  # noqa: BLE001
            first_line = (str(error).strip() or "no message").splitlines()[0]
            return f"{type(error).__name__}: {first_line}"
    return ""


def _step(optimizer: Any, parameters: Sequence[nn.Parameter], *, plainly: bool = False) -> None:
    def gradients() -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.01)
        return torch.zeros(())

    gradients()
    if plainly:
        optimizer.step()
    elif hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step"):
        optimizer.first_step()
        gradients()
        optimizer.second_step()
    else:
        _with_closure_if_need_be(optimizer.step, gradients)


def _with_closure_if_need_be(step: Callable[..., Any], closure: Callable[[], Any]) -> None:
    try:
        step()
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        if "closure" not in str(error):
            raise
        step(closure)
