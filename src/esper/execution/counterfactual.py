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
from esper.execution.isolation import LossFn, example_losses
from esper.execution.kasmina_layer import KasminaLayer
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
    layer: KasminaLayer,
    seed_idx: int,
    *,
    loss_fn: LossFn,
    holdout: Iterable[Any],
    calibration: Sequence[Any] = (),
) -> Effect:
    """Judge one seed of a layer, which has a kernel and may be in any state, on held-out data.

    ``holdout`` has batches that are never trained on, and is iterated twice; ``calibration`` has
    training batches for estimating batch-norm statistics, if the model keeps any.
    """
    norms = _estimated(model)
    losses = {}
    for on in (False, True):
        with (
            side_effect_free(model, training=False, reads=holdout),
            torch.no_grad(),
            layer.showing(seed_idx, on=on),
        ):
            _estimate(norms, model, loss_fn, calibration)
            losses[on] = _all_losses(model, loss_fn, holdout)
    if losses[False].shape != losses[True].shape:
        raise ConfigError(
            f"holdout gave {losses[False].numel()} examples, and then {losses[True].numel()}; "
            "it is compared with itself, so it must give the same ones each time"
        )
    difference = losses[False] - losses[True]
    n = difference.numel()
    return Effect(
        gain=float(difference.mean()),
        stderr=float(difference.std()) / sqrt(n) if n > 1 else float("inf"),
        loss_off=float(losses[False].mean()),
        loss_on=float(losses[True].mean()),
        examples=n,
    )


def evaluate(model: nn.Module, loss_fn: LossFn, batches: Iterable[Any]) -> float:
    """Mean per-example value of ``loss_fn`` over the batches, in evaluation mode."""
    with side_effect_free(model, training=False, reads=batches), torch.no_grad():
        return float(_all_losses(model, loss_fn, batches).mean())


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


def _estimate(
    norms: Sequence[_BatchNorm], model: nn.Module, loss_fn: LossFn, batches: Sequence[Any]
) -> None:
    """Set running statistics to the plain average over the batches, within `side_effect_free`."""
    if not batches or not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        for batch in batches:
            loss_fn(model, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False


def _all_losses(model: nn.Module, loss_fn: LossFn, batches: Iterable[Any]) -> Tensor:
    # float64: the differences that matter are a thousandth of the losses.
    found = [example_losses(loss_fn, model, batch).double() for batch in batches]
    if not found:
        raise ConfigError(
            "holdout has no batches; give a list or a DataLoader, not a spent iterator"
        )
    return torch.cat(found)
