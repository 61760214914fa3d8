"""First look: one pass in which a new kernel's rows are set against what they will read."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from esper.blueprints import BLUEPRINTS
from esper.execution.kernel import FAULTS, Kernel
from esper.execution.passes.isolation import LossFn
from esper.execution.replicas.replicas import ALONE, Replicas
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode
from esper.execution.training.whitening import whitening

logger = logging.getLogger(__name__)


def look(
    model: nn.Module,
    layer: Seeded,
    seed_idx: int,
    *,
    loss_fn: LossFn,
    batch: Any,
    replicas: Replicas = ALONE,
) -> None:
    """Whiten the rows of a kernel that has not trained yet, if its blueprint wants that.

    Args:
        model: The model.
        layer: The site of the kernel.
        seed_idx: Its seed.
        loss_fn: Per-example losses.
        batch: Training batch; where it does not reach the layer, nothing is done.
        replicas: The processes, each with a batch; all see what the batches of all give.
    """
    kernel = layer.seed(seed_idx).as_kernel()
    if not kernel.blueprint or not BLUEPRINTS.create(kernel.blueprint).whitened:
        return
    with replicas.together("the first look at what a kernel reads"):
        x = _read(model, layer, seed_idx, loss_fn, batch)
    like = next(kernel.module.parameters())
    seen = replicas.own_or_lent(None if x is None else x.to(like.device, like.dtype), like)
    if seen is not None:
        _set(kernel, seen, replicas, own=x is not None)


def _set(kernel: Kernel, x: Tensor, replicas: Replicas, *, own: bool) -> None:
    """Whiten a kernel; one that fails in this pass keeps the rows that were drawn."""
    drawn = {name: value.clone() for name, value in kernel.module.state_dict().items()}
    try:
        with (
            side_effect_free(kernel.module),
            whitening(kernel.module, replicas.rows, own=own),
            torch.no_grad(),
        ):
            kernel.module(x)
    except FAULTS as error:
        kernel.module.load_state_dict(drawn)
        logger.warning(
            "kernel %s fails at the first look at what it reads, and begins as it was drawn: %r",
            kernel.kernel_id,
            error,
        )


def _read(
    model: nn.Module, layer: Seeded, seed_idx: int, loss_fn: LossFn, batch: Any
) -> Tensor | None:
    """Input of a seed's kernel when a batch passes; ``None`` if that does not reach it."""
    found: list[Tensor] = []

    def watch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not found:  # a copy, since the host may write into it
            found.append(args[0].detach().clone())

    handle = layer.seed(seed_idx).as_kernel().module.register_forward_pre_hook(watch)
    try:
        with torch.no_grad():
            _pass(model, layer, seed_idx, loss_fn, batch)
    except FAULTS:  # as of a loss that takes gradients for its inputs, where none are recorded
        if not found:
            with torch.enable_grad():
                _pass(model, layer, seed_idx, loss_fn, batch)
    finally:
        handle.remove()
    return found[0] if found else None


def _pass(model: nn.Module, layer: Seeded, seed_idx: int, loss_fn: LossFn, batch: Any) -> None:
    with side_effect_free(model, training=training_like_mode(model)), layer.isolating(seed_idx):
        freeze_statistics(model)
        loss_fn(model, batch)
