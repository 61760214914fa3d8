"""Counterfactual attribution: held-out loss without a seed minus with it, on the same examples.

Batch-norm statistics are estimated anew for each of the two, because those that the model carries
belong to the path that it trained on and flatter it (3.6-fold on one task).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.contracts.errors import ConfigError
from esper.execution.passes.isolation import LossFn, example_losses
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import side_effect_free


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Effect of one seed on the held-out loss.

    Attributes:
        gain: Mean over examples of loss off minus loss on; > 0 means that the seed helps.
        stderr: Paired standard error of ``gain``, over examples.
        loss_off: Mean loss without the seed.
        loss_on: Mean loss with the seed at full strength.
        examples: Number of examples.
    """

    gain: float
    stderr: float
    loss_off: float
    loss_on: float
    examples: int


def counterfactual(
    model: nn.Module,
    layer: Seeded,
    seed_idx: int,
    *,
    loss_fn: LossFn,
    holdout: Iterable[Any],
    calibration: Sequence[Any] = (),
) -> Effect:
    """Judge one seed of a layer, which has a kernel and may be in any state, on held-out data.

    ``holdout`` has batches that are never trained on. It is iterated once, and each batch goes
    through the model without the seed and with it, from one random state: so the examples are the
    same, however the holdout shuffles. ``calibration`` has training batches for estimating
    batch-norm statistics, if the model keeps any.

    Raises:
        ConfigError: if the holdout has no batches, or a batch gives other examples the second time.
    """
    norms = _estimated(model) if calibration else []
    losses: dict[bool, list[Tensor]] = {False: [], True: []}
    with side_effect_free(model, training=False, reads=holdout), torch.no_grad():
        statistics = {}
        for on in losses:
            with layer.showing(seed_idx, on=on):
                statistics[on] = _statistics(norms, model, loss_fn, calibration)
        for batch in holdout:
            # The pass without the seed is undone, random state included, and the other goes on.
            with side_effect_free(model), layer.showing(seed_idx, on=False):
                losses[False].append(_losses_with(statistics[False], model, loss_fn, batch))
            with layer.showing(seed_idx, on=True):
                losses[True].append(_losses_with(statistics[True], model, loss_fn, batch))
    off, on_ = _joined(losses[False]), _joined(losses[True])
    if off.shape != on_.shape:
        raise ConfigError(
            f"loss_fn(model, batch) gave {off.numel()} losses without the seed and {on_.numel()} "
            "with it; the two are compared example by example, so it must give the same number"
        )
    difference = off - on_
    n = difference.numel()
    return Effect(
        gain=float(difference.mean()),
        stderr=float(difference.std()) / sqrt(n) if n > 1 else float("inf"),
        loss_off=float(off.mean()),
        loss_on=float(on_.mean()),
        examples=n,
    )


def evaluate(model: nn.Module, loss_fn: LossFn, batches: Iterable[Any]) -> float:
    """Mean per-example value of ``loss_fn`` over the batches, in evaluation mode."""
    with side_effect_free(model, training=False, reads=batches), torch.no_grad():
        found = [_losses_with([], model, loss_fn, batch) for batch in batches]
        return float(_joined(found).mean())


def _estimated(model: nn.Module) -> list[_BatchNorm]:
    """Batch-norm layers whose statistics move."""
    # One that is in evaluation mode while the model trains is frozen, and keeps what it has.
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and (module.training or not model.training)
    ]


def _statistics(
    norms: Sequence[_BatchNorm], model: nn.Module, loss_fn: LossFn, batches: Sequence[Any]
) -> list[tuple[Tensor, Tensor]]:
    """Running statistics of the layers, and their plain average over the batches."""
    if not norms:
        return []
    momenta = [norm.momentum for norm in norms]
    try:
        with side_effect_free(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
            for batch in batches:
                loss_fn(model, batch)
            buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
            return [(buffer, buffer.clone()) for buffer in buffers]
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _losses_with(
    statistics: Sequence[tuple[Tensor, Tensor]], model: nn.Module, loss_fn: LossFn, batch: Any
) -> Tensor:
    for buffer, value in statistics:
        buffer.copy_(value)
    # float64: the differences that matter are a thousandth of the losses.
    return example_losses(loss_fn, model, batch).double()


def _joined(losses: Sequence[Tensor]) -> Tensor:
    if not losses:
        raise ConfigError(
            "holdout has no batches; give a list or a DataLoader, not a spent iterator"
        )
    return torch.cat(list(losses))
