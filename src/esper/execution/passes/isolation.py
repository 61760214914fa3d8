"""Isolation: shadow passes that train a seed and leave the host bit for bit unchanged.

A shadow pass is a second forward with one seed at full strength. Upstream of the layer nothing has
gradients, unless the user's code switches them on and off around the layer; batch-norm uses its
running statistics, the random state is forked, and gradients are taken for the seed's parameters
alone. Modules that are in evaluation mode stay in it.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError, KernelError
from esper.execution.passes.batches import name_of, tensors_in
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode
from esper.execution.training.seed_trainer import SeedTrainer

LossFn = Callable[[nn.Module, Any], Any]
"""Takes the model and a batch; gives one loss per example, shape (B,), or what `example_losses`
makes one of."""


_RECORDED: WeakSet[Seeded] = WeakSet()
"""Layers inside a context of the user's that ends the recording of gradients, as
``torch.set_grad_enabled``, or under a loss that takes gradients for its inputs: a shadow pass must
record from its beginning on."""


def example_losses(loss_fn: LossFn, model: nn.Module, batch: Any) -> Tensor:
    """Losses of a batch, shape (B,).

    Losses per token, shape (B, T), become their mean over each example; with a mask, given as
    ``(losses, mask)``, over the tokens where it is not zero. An example without any is left out.
    A batch of one example may give a loss of shape ().

    Raises:
        ConfigError: if the function returns anything else, as a mean.
    """
    losses: Any = loss_fn(model, batch)
    if _is_masked(losses):
        return _masked_means(*losses)
    if isinstance(losses, Tensor):
        if losses.ndim == 1:
            return losses
        if losses.ndim == 0 and _may_be_one_example(batch):
            return losses.reshape(1)
        if losses.ndim >= 2 and losses.shape[1:].numel() > 1:
            return losses.flatten(1).mean(dim=1)
    name, shape = name_of(loss_fn), str(type(losses).__name__)
    what = "loss" if name == "loss_fn" else "value"
    if isinstance(losses, Tensor):
        shape = str(tuple(losses.shape) or "one number, as a mean of the batch")
    raise ConfigError(
        f"{name}(model, batch) returned {shape}; it must return one {what} per example, shape "
        "(B,): use reduction='none' and take the mean in your own loop. Losses per token, shape "
        "(B, T), go with their mask: (losses, mask)"
    )


def _is_masked(losses: Any) -> bool:
    return (
        isinstance(losses, tuple)
        and len(losses) == 2
        and all(isinstance(part, Tensor) for part in losses)
        and losses[0].ndim >= 2
        and losses[0].shape == losses[1].shape
    )


def _masked_means(losses: Tensor, mask: Tensor) -> Tensor:
    # What is masked may be NaN, so it is replaced and not multiplied by zero.
    weights_BN = mask.flatten(1).to(losses.dtype)
    kept_BN = losses.flatten(1).masked_fill(weights_BN == 0, 0.0) * weights_BN
    counts_B = weights_BN.sum(dim=1)
    told = counts_B > 0
    return kept_BN.sum(dim=1)[told] / counts_B[told]


def _may_be_one_example(batch: Any) -> bool:
    return any(tensor.ndim > 0 and tensor.shape[0] == 1 for tensor in tensors_in(batch))


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


Gradients = Sequence[Tensor | None]
Make = Callable[[], Gradients | None]
Reduce = Callable[[Make, Sequence[Tensor]], Gradients | None]
"""Takes what makes the gradients of this process, and tensors like them; gives those that count."""


def _own(make: Make, _like: Sequence[Tensor]) -> Gradients | None:
    return make()


def shadow_step(
    model: nn.Module,
    layer: Seeded,
    seed_idx: int,
    *,
    loss_fn: LossFn,
    batch: Any,
    optimizer: torch.optim.Optimizer | SeedTrainer,
    reduce: Reduce = _own,
) -> Tensor | None:
    """Train one seed, which has a kernel, on one batch.

    ``optimizer`` holds the seed's parameters and no others. ``reduce`` makes the gradients of this
    process those of all.

    Returns:
        Mean loss with the seed on, before the step; a scalar without gradient, NaN if only other
        processes have one. ``None``, and no step, if no loss depends on the seed: the pass did not
        reach its layer.
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    told: list[Tensor] = []

    def own() -> Gradients | None:
        found = _shadow_pass(model, layer, seed_idx, loss_fn, batch, parameters)
        if found is None:
            return None
        told.append(found[0])
        return found[1]

    gradients = reduce(own, parameters)
    if gradients is None:
        return None
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    layer.learn_statistics()
    optimizer.zero_grad(set_to_none=True)
    return told[0] if told else parameters[0].new_full((), float("nan"))


def _shadow_pass(
    model: nn.Module,
    layer: Seeded,
    seed_idx: int,
    loss_fn: LossFn,
    batch: Any,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Gradients] | None:
    """Mean loss with the seed on, and its gradients; ``None`` if it does not depend on the seed."""
    for recording in [True] if layer in _RECORDED else [False, True]:
        try:
            with (
                side_effect_free(model, training=training_like_mode(model)),
                torch.set_grad_enabled(recording),
                layer.isolating(seed_idx),
            ):
                freeze_statistics(model)
                losses = example_losses(loss_fn, model, batch)
                if not losses.requires_grad or losses.numel() == 0:
                    continue
                with torch.enable_grad():  # a context of the user's may have switched it off again
                    loss = losses.mean()
                gradients = gradients_of(loss, parameters)
        except RuntimeError:
            # A loss that asks for gradients with respect to its inputs needs all of them recorded.
            if recording:
                raise
            continue
        if all(gradient is None for gradient in gradients):
            return None
        if recording:
            _RECORDED.add(layer)
        return loss.detach(), gradients
    return None
