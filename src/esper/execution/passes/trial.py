"""Trial passes before a run: which modules write into themselves, and what cannot be restored."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError
from esper.execution.concealed import every_module
from esper.execution.kernel import FAULTS
from esper.execution.module_state import Parameters, mark_writers
from esper.execution.passes.batches import OnCopies
from esper.execution.passes.isolation import LossFn, example_losses
from esper.execution.side_effect_free import side_effect_free


def try_passes(model: nn.Module, loss_fn: LossFn, batch: Any) -> None:
    """Run two passes on the side in each mode; they must leave everything as it was.

    Modules that write into their parameters are found and restored from then on. A pass that fails
    tells nothing here.

    Raises:
        ConfigError: if equal passes give other losses, or move a module outside the model.
    """
    outside = _outside(loss_fn, model)
    before = {name: [tensor.clone() for tensor in held] for name, held in outside.items()}
    losses: dict[bool, list[Tensor]] = {False: [], True: []}
    for training in (False, True, True, False):
        parameters = Parameters(every_module(model))
        try:
            with suppress(*FAULTS), side_effect_free(model, training=training), torch.no_grad():
                found = example_losses(loss_fn, model, batch)
                losses[training].append(found.clone())
        finally:
            mark_writers(parameters.written())
            parameters.put_back()
    moved = [
        name for name, held in outside.items() if not all(map(torch.equal, before[name], held))
    ]
    for name in moved:
        for tensor, value in zip(outside[name], before[name], strict=True):
            tensor.copy_(value)
    if moved:
        raise ConfigError(
            f"loss_fn uses {moved[0]!r}, which is outside the model and changes in every pass, so "
            "passes on the side would change the training; make it a submodule of the model"
        )
    if not all(_equal(*pair) for pair in losses.values() if len(pair) == 2):
        raise ConfigError(
            "loss_fn(model, batch) gives other losses when it is run again on the same batch, with "
            "the model and all random states put back: it changes something outside the model, as "
            "a counter, a generator or a head; make it an attribute or a submodule of the model"
        )


def _outside(function: object, model: nn.Module) -> dict[str, list[Tensor]]:
    """Tensors of the modules that a function uses and that are not the model's, by name."""
    own = {id(module) for module in every_module(model)}
    found = {}
    for name, part in _modules_of(function):
        modules = [module for module in part.modules() if id(module) not in own]
        tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values())]
        found[name] = [tensor.data for tensor in tensors if tensor is not None]
    return found


def _modules_of(function: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a function reads from its closure, its globals and its object, by name."""
    while isinstance(function, OnCopies) or hasattr(function, "func"):  # functools.partial
        function = function.function if isinstance(function, OnCopies) else function.func
    found: dict[str, Any] = {}
    owner = getattr(function, "__self__", None if hasattr(function, "__code__") else function)
    if isinstance(owner, nn.Module):
        found[type(owner).__name__] = owner
    found |= getattr(owner, "__dict__", {})
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is not None:
        cells = getattr(function, "__closure__", None) or ()
        for name, cell in zip(code.co_freevars, cells, strict=True):
            with suppress(ValueError):  # an empty cell
                found[name] = cell.cell_contents
        scope = function.__globals__
        found |= {name: scope[name] for name in code.co_names if name in scope}
    return ((name, value) for name, value in found.items() if isinstance(value, nn.Module))


def _equal(first: Tensor, second: Tensor) -> bool:
    # Sums on an accelerator differ in their last digits from run to run.
    alike = first.shape == second.shape
    return alike and torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)
