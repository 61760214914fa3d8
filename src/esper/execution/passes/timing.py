"""Times of passes through a model, measured on the side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, final

import torch
from torch import Tensor, nn

from esper.execution.passes.isolation import LossFn, example_losses, gradients_of
from esper.execution.passes.probes import probe
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode

_ROUNDS = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Milliseconds of one pass, the shortest of a few; the optimizer's step is in none.

    Attributes:
        training_ms: Forward and backward, over all trainable parameters.
        probe_ms: One probe of the wrapped layers.
        shadow_ms: Forward, and backward down to a wrapped layer, the median of three layers; the
            kernel and its optimizer come on top.
        evaluation_ms: Forward without gradients, once for each function that is evaluated.
        examples: Examples of the batch of training and probe.
        held_out: Examples of the batch of evaluation.
    """

    training_ms: float
    probe_ms: float
    shadow_ms: float
    evaluation_ms: float
    examples: int
    held_out: int


def time_passes(
    model: nn.Module,
    layers: Mapping[str, Seeded],
    functions: Sequence[LossFn],
    *,
    batch: Any,
    held_out: Any,
) -> PassTimes:
    """Time a few passes that leave model, gradients and random states as they were.

    Args:
        model: The model.
        layers: The wrapped layers by name.
        functions: Functions that are evaluated; the first gives the losses to train by.
        batch: As the functions take it, to train on.
        held_out: As the functions take it, to evaluate.

    Raises:
        KernelError: if the model uses reentrant checkpointing.
    """
    loss_fn = functions[0]
    parameters = [p for p in model.parameters() if p.requires_grad]
    sizes = {}
    every = list(layers.values())
    some = [every[0], every[len(every) // 2], every[-1]]

    def train() -> None:
        losses = example_losses(loss_fn, model, batch)
        sizes["examples"] = len(losses)
        if losses.requires_grad:
            gradients_of(losses.mean(), parameters)

    def evaluate() -> None:
        for function in functions:
            sizes["held_out"] = len(example_losses(function, model, held_out))

    def one_round() -> tuple[float, ...]:
        with side_effect_free(model, training=training_like_mode(model)), torch.enable_grad():
            training_ms = _ms(train)
        with side_effect_free(model, training=False), torch.no_grad():
            evaluation_ms = _ms(evaluate)
        probe_ms = _ms(lambda: probe(model, layers, loss_fn=loss_fn, batch=batch))
        shadows = [_ms(partial(_pass_like_shadow, model, it, loss_fn, batch)) for it in some]
        return training_ms, probe_ms, median(shadows), evaluation_ms

    # In turns, so that a busy moment hits all alike; the first round may allocate and compile.
    rounds = [one_round() for _ in range(1 + _ROUNDS)][1:]
    training_ms, probe_ms, shadow_ms, evaluation_ms = map(min, zip(*rounds, strict=True))
    return PassTimes(
        training_ms=training_ms,
        probe_ms=probe_ms,
        shadow_ms=shadow_ms,
        evaluation_ms=evaluation_ms,
        **sizes,
    )


def _ms(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return 1000 * (perf_counter() - started)


def _pass_like_shadow(model: nn.Module, layer: Seeded, loss_fn: LossFn, batch: Any) -> None:
    """Pass of which only what follows the layer is recorded, as when a seed trains."""
    roots = []

    def record(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        torch.set_grad_enabled(True)
        roots.append(torch.zeros_like(output, requires_grad=True))
        return output + roots[-1]

    handle = layer.register_forward_hook(record)
    try:
        mode = training_like_mode(model)
        with side_effect_free(model, training=mode), torch.no_grad():
            freeze_statistics(model)
            losses = example_losses(loss_fn, model, batch)
            if losses.requires_grad:
                gradients_of(losses.mean(), roots)
    finally:
        handle.remove()
