"""Probes: health of the wrapped layers, measured in a pass of their own, off the hot path.

Every so many batches the model runs once more on a batch that it has just trained on, and inputs,
outputs and output gradients of the wrapped layers are measured. Between probes nothing is hooked,
so a dormant layer costs what its host costs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import sqrt
from typing import Any, final

import torch
from torch import Tensor, nn

from esper.blueprints import BLUEPRINTS, for_widths
from esper.contracts.errors import KernelError, MeasurementError
from esper.contracts.seeds import LayerSpec
from esper.execution.passes.isolation import LossFn, example_losses, gradients_of
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode

# B examples, N everything else of one example; F features read, G features written

LOW_RANK = ("lora", "lowrank")
"""Blueprints of linear maps."""


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
    seen = _passed(model, layers, loss_fn, batch)
    return {name: _read(*tensors) for name, tensors in seen.items()}


def promises(
    model: nn.Module, layers: Mapping[str, Seeded], *, loss_fn: LossFn, batches: Iterable[Any]
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Gains that kernels promise, by layer, blueprint and unit of width, from one pass.

    All on one scale: the fall of the summed losses, to first order, by a step of norm 1. Of a
    kernel of low rank that are the singular values of the gradient of a linear map beside the
    layer, one for each rank, descending; of any other the norm of the gradient of a fresh kernel of
    the smallest size, of which the k-th unit adds ``sqrt(k) - sqrt(k - 1)``.

    Raises:
        KernelError: as `probe`.
        MeasurementError: if a gradient is not finite, as of a loss that is not.
    """
    sums: dict[tuple[str, str], list[Tensor]] = {}
    fresh = cache(_smallest)  # built once, for all batches and layers of one shape
    for batch in batches:
        for name, (x, _, gradient) in _passed(model, layers, loss_fn, batch).items():
            spec = layers[name].spec
            if not torch.isfinite(gradient).all():
                raise MeasurementError(
                    f"the gradient at layer {name!r} is not finite, and promises nothing; see that "
                    "loss_fn(model, batch) is finite on every batch"
                )
            for blueprint in dict.fromkeys(layers[name].seed_blueprints) if spec else ():
                assert spec is not None
                found = _gradients(fresh, blueprint, spec, x.float(), gradient.float())
                before = sums.get((name, blueprint)) or [torch.zeros_like(g) for g in found]
                sums[name, blueprint] = [a + b for a, b in zip(before, found, strict=True)]
    promised: dict[str, dict[str, tuple[float, ...]]] = {}
    for (name, blueprint), gradients in sums.items():
        spec = layers[name].spec
        if spec is not None and gradients:
            promised.setdefault(name, {})[blueprint] = _by_unit(blueprint, spec, gradients)
    return promised


Fresh = Callable[[str, LayerSpec, torch.device], nn.Module]


def _gradients(
    fresh: Fresh, blueprint: str, spec: LayerSpec, x: Tensor, gradient: Tensor
) -> list[Tensor]:
    """Gradient of a linear map, or of the parameters of a fresh kernel; none if it does not fit."""
    if not blueprint or for_widths(blueprint) or BLUEPRINTS.create(blueprint).objection(spec):
        return []
    if blueprint in LOW_RANK:
        x_NF, gradient_NG = (
            t.permute(spec.order).flatten(0, -2) if spec.order else t.flatten(0, -2)
            for t in (x, gradient)
        )
        return [gradient_NG.T @ x_NF]
    kernel = fresh(blueprint, spec, x.device)
    with torch.enable_grad():
        found = torch.autograd.grad(
            kernel(x),
            list(kernel.parameters()),
            gradient,
            allow_unused=True,
            materialize_grads=True,
        )
    return list(found)


def _smallest(blueprint: str, spec: LayerSpec, device: torch.device) -> nn.Module:
    recipe, kind = BLUEPRINTS.create(blueprint), torch.float32
    return recipe.build(spec, budget=recipe.count(spec, 1), seed=0, dtype=kind, device=device)


def _by_unit(blueprint: str, spec: LayerSpec, gradients: Sequence[Tensor]) -> tuple[float, ...]:
    if blueprint in LOW_RANK:
        return tuple(torch.linalg.svdvals(gradients[0]).tolist())
    whole = float(sum(g.double().square().sum() for g in gradients)) ** 0.5
    widest = BLUEPRINTS.create(blueprint).widest(spec) or min(spec.in_size, spec.out_size)
    return tuple(whole * (sqrt(k + 1) - sqrt(k)) for k in range(widest))


def _passed(
    model: nn.Module, layers: Mapping[str, Seeded], loss_fn: LossFn, batch: Any
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Input, output and gradient at the output of every layer that the loss depends on."""
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
        name: (*seen[name], gradient)
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


_COUNT = "readings"


@final
class Readings:
    """Sums of the readings of one epoch, by layer and field."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, float]] = {}

    def add(self, readings: Mapping[str, Reading]) -> None:
        """Add the readings of one probe."""
        for name, reading in readings.items():
            sums = self._of.setdefault(name, dict.fromkeys((_COUNT, *Reading.__slots__), 0.0))
            sums[_COUNT] += 1
            for field in Reading.__slots__:
                sums[field] += getattr(reading, field)

    def take(self) -> dict[str, dict[str, float]]:
        """Return the means by layer and field, and start again."""
        means = {
            name: {field: sums[field] / sums[_COUNT] for field in Reading.__slots__}
            for name, sums in self._of.items()
        }
        self._of.clear()
        return means

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The sums so far, in the order of the layers."""
        return {name: dict(sums) for name, sums in self._of.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Undo `state_dict`."""
        self._of = {name: dict(sums) for name, sums in state.items()}

    def __bool__(self) -> bool:
        return bool(self._of)
