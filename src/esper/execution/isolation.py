"""Isolation: shadow passes that train a seed and leave the host bit for bit unchanged.

A shadow pass is a second forward with one seed at full strength. Upstream of the layer nothing has
gradients, batch-norm uses its running statistics, the random state is forked, and gradients are
taken for the seed's parameters alone. Modules that are in evaluation mode stay in it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError, KernelError
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode

LossFn = Callable[[nn.Module, Any], Tensor]
"""Takes the model and a batch; gives one loss per example, shape (B,)."""


def example_losses(loss_fn: LossFn, model: nn.Module, batch: Any) -> Tensor:
    """Losses of a batch, shape (B,).

    Raises:
        ConfigError: if the function returns anything else, as a mean.
    """
    losses = loss_fn(model, batch)
    if not isinstance(losses, Tensor) or losses.ndim != 1:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ConfigError(
            f"loss_fn(model, batch) returned {shape}; it must return one loss per example, shape "
            "(B,): use reduction='none' and take the mean in your own loop"
        )
    return losses


def gradients_of(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients for these tensors and no others; ``None`` where the loss does not depend on one.

    Raises:
        KernelError: if the model uses reentrant checkpointing, which cannot do that.
    """
    try:
        return torch.autograd.grad(loss, inputs, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise KernelError(
            "the model uses reentrant gradient checkpointing, which cannot take gradients for "
            "chosen tensors; call torch.utils.checkpoint.checkpoint with use_reentrant=False"
        ) from error


def shadow_step(
    model: nn.Module,
    layer: KasminaLayer,
    seed_idx: int,
    *,
    loss_fn: LossFn,
    batch: Any,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Train one seed, which has a kernel, on one batch.

    ``optimizer`` holds the seed's parameters and no others.

    Returns:
        Mean loss with the seed on, before the step; a scalar without gradient.

    Raises:
        KernelError: if the layer has no part in the loss.
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    with (
        side_effect_free(model, training=training_like_mode(model)),
        torch.no_grad(),
        layer.isolating(seed_idx),
    ):
        freeze_statistics(model)
        loss = example_losses(loss_fn, model, batch).mean()
        if not loss.requires_grad:
            raise KernelError(
                f"the loss does not depend on layer {layer.name!r}: its seed {seed_idx} cannot "
                "learn. Is the layer used in forward, outside torch.no_grad and outside "
                "reentrant checkpointing?"
            )
        gradients = gradients_of(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()
