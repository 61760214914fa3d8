"""Layers that a pass reaches, and those among them that no kernel could stand beside."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.errors import EsperError, KernelError
from esper.execution.kernel import FAULTS
from esper.execution.passes.batches import tensors_in
from esper.execution.passes.isolation import LossFn
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode


def reached(
    model: nn.Module,
    layers: Mapping[str, Seeded],
    *,
    loss_fn: LossFn,
    batch: Any,
    training: bool = False,
) -> dict[str, str]:
    """Run the model once on the side, and say which wrapped layers the pass called.

    Args:
        model: The model.
        layers: The layers to watch, by name.
        loss_fn: As the user gave it.
        batch: As ``loss_fn`` takes it.
        training: Whether the modules are in the modes in which they train.

    Returns:
        An objection for each layer that was called; empty for one that a kernel may stand beside.

    Raises:
        KernelError: if the model fails on the batch.
    """
    found: dict[str, str] = {}

    def leave(layer: Seeded, args: Any, kwargs: Any, output: Any, *, name: str) -> None:
        found[name] = found.get(name) or _objection(layer.input_of(args, kwargs), output, training)

    handles = [
        layer.register_forward_hook(partial(leave, name=name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        mode = training_like_mode(model) if training else False
        with refusing(batch), side_effect_free(model, training=mode), torch.no_grad():
            if training:
                freeze_statistics(model)
            loss_fn(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def refusing(batch: Any, function: str = "loss_fn") -> Iterator[None]:
    """Say of a failure inside that it is the model's or a function's on a batch of the holdout.

    Raises:
        KernelError: if what is inside fails.
    """
    try:
        yield
    except EsperError:
        raise
    except FAULTS as error:
        held = tensors_in(batch)
        shapes = ", ".join("nested" if t.is_nested else str(tuple(t.shape)) for t in held)
        kind = type(batch).__name__ + (f" of {shapes}" if shapes else "")
        subject = "the model" if function == "loss_fn" else function
        raise KernelError(
            f"{subject} fails on a batch of the holdout, {kind}: {_named(error)}. Nothing was "
            f"changed; {function}(model, batch) must run on every batch that iterating over the "
            "holdout gives"
        ) from error


def _objection(x: Any, y: Any, training: bool) -> str:
    if any(isinstance(t, Tensor) and (t.is_nested or t.layout != torch.strided) for t in (x, y)):
        return (
            "reads or writes nested or sparse tensors, and a kernel reads dense ones; wrap a layer "
            "on padded tensors"
        )
    if isinstance(x, Tensor) and not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        return f"reads {kind}, and a kernel reads floating-point numbers; wrap the layer after it"
    if training and not isinstance(y, Tensor):
        return (
            f"gives a {type(y).__name__} in training, and a kernel adds to a tensor; wrap a layer "
            "inside it"
        )
    return ""


def _named(error: Exception) -> str:
    """The message of an error; with its name where the message is but a key, or with a way out."""
    if "does not require grad" in str(error):
        return f"{error} (loss_fn may take gradients inside `with torch.enable_grad():`)"
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
