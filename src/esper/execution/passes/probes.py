"""Probes: health of the wrapped layers, measured in a pass of their own, off the hot path.

Every so many batches the model runs once more on a batch that it has just trained on, and inputs,
outputs and output gradients of the wrapped layers are measured. Between probes nothing is hooked,
so a dormant layer costs what its host costs.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from esper.contracts.errors import KernelError
from esper.execution.passes.isolation import LossFn, example_losses, gradients_of
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode

# B examples, N everything else of one example


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Measurement of one layer; the fields are those of ``HealthSignal``."""

    gradient_rms: float
    input_rms: float
    activation_mean: float
    activation_sd: float
    dead_fraction: float


def probe(
    model: nn.Module, layers: Mapping[str, Seeded], *, loss_fn: LossFn, batch: Any
) -> dict[str, Reading]:
    """Measure on one batch every wrapped layer that the loss depends on.

    Raises:
        KernelError: if the losses have no gradients, or the model uses reentrant checkpointing.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    roots: dict[str, Tensor] = {}

    def watch(
        layer: Seeded,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        *,
        name: str,
    ) -> Tensor | None:
        x = layer.input_of(args, kwargs)
        if not isinstance(output, Tensor) or not isinstance(x, Tensor):
            return None
        # A zero is added whose gradient is the output's: it works with frozen hosts too.
        # One number in memory, whatever its shape.
        root = output.new_zeros(()).expand_as(output).requires_grad_()
        # Cloned, because what follows may write into it, as in ``x += layer(x)``.
        roots[name], seen[name] = root, (x.detach().clone(), output.detach())
        return output + root

    handles = [
        layer.register_forward_hook(partial(watch, name=name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with side_effect_free(model, training=training_like_mode(model)), torch.enable_grad():
            freeze_statistics(model)
            losses = example_losses(loss_fn, model, batch)
            if not roots:
                return {}
            if not losses.requires_grad:
                raise KernelError(
                    "loss_fn(model, batch) gave losses without gradients, so no kernel can learn; "
                    "call it outside torch.no_grad and torch.inference_mode, and detach nothing"
                )
            gradients = gradients_of(losses.sum(), list(roots.values()))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: _read(*seen[name], gradient)
        for name, gradient in zip(roots, gradients, strict=True)
        if gradient is not None
    }


def _read(x: Tensor, y: Tensor, gradient: Tensor) -> Reading:
    y_BN = y.detach().flatten(1)
    wide_BN = y_BN.double()
    return Reading(
        gradient_rms=_rms_norm(gradient),
        input_rms=_rms_norm(x),
        activation_mean=float(wide_BN.mean()),
        activation_sd=float(wide_BN.std(unbiased=False)),
        dead_fraction=float((y_BN.amax(dim=0) <= 0).double().mean()),
    )


def _rms_norm(t: Tensor) -> float:
    # One copy, squared in place: a probe should cost no more than it must.
    squares_BN = t.detach().to(torch.float64, copy=True).flatten(1).square_()
    return float(squares_BN.sum(dim=1).mean().sqrt())


@final
class Readings:
    """Running means of the readings of one epoch."""

    def __init__(self) -> None:
        self._of: dict[str, list[Reading]] = defaultdict(list)

    def add(self, readings: Mapping[str, Reading]) -> None:
        """Add the readings of one probe."""
        for name, reading in readings.items():
            self._of[name].append(reading)

    def take(self) -> dict[str, dict[str, float]]:
        """Return the means by layer and field, and start again."""
        means = {
            name: {
                field: sum(getattr(r, field) for r in readings) / len(readings)
                for field in Reading.__slots__
            }
            for name, readings in self._of.items()
        }
        self._of.clear()
        return means

    def __bool__(self) -> bool:
        return bool(self._of)
