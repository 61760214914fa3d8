"""Trial passes before a run: what they change is undone from then on, or refused."""

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError
from esper.execution.concealed import every_module
from esper.execution.kernel import FAULTS
from esper.execution.passes.batches import OnCopies
from esper.execution.passes.isolation import LossFn, example_losses, gradients_of
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode
from esper.execution.undoing.deep import too_many
from esper.execution.undoing.module_state import (
    Parameters,
    Place,
    Reached,
    mark_places,
    mark_writers,
)
from esper.execution.undoing.reachable import MANY, follow, named

_BOTH_MODES = (False, True)
_EVERY = 10**6
"""Items of containers that are compared to find out what a pass changes."""


def try_passes(model: nn.Module, function: LossFn, batch: object) -> None:
    """Run two passes on the side in each mode and one backward: all must stay as it was.

    Everything that is reached from the model's modules and from ``function`` is compared. What
    changed, and is of the model or no module, is restored in every pass from then on. A pass that
    fails tells nothing here.

    Raises:
        ConfigError: if something changes that cannot be put back, a module outside the model
            changes, or equal passes give other losses.
    """
    function = function if isinstance(function, OnCopies) else OnCopies(function, "loss_fn")
    losses: list[list[Tensor]] = []
    for training in (*_BOTH_MODES, *_BOTH_MODES):
        with _watched(model, function):
            losses.append(_losses(model, function, batch, training=training))
    first, second = losses[:2], losses[2:]
    for once, again in zip(first, second, strict=True):
        if not all(map(_equal, once, again)):
            _refuse_unequal(model, function, batch)
    if all(losses):
        with _watched(model, function), suppress(*FAULTS):
            _backward(model, function, batch)


@contextmanager
def _watched(model: nn.Module, function: OnCopies) -> Iterator[None]:
    """Mark what changes inside, and put it back."""
    names = {id(module): name for name, module in model.named_modules()}
    modules = list(every_module(model))
    parameters = Parameters(modules)
    reached = Reached([*modules, function.function], own=modules)
    try:
        yield
    finally:
        changed = reached.changed()
        reached.put_back()
        mark_writers(parameters.written())
        parameters.put_back()
    inside, outside = _split(changed, len(modules))
    for place in changed:
        _refuse_if_lost(place, names)
    mark_places(inside)
    function.undo(mark for place in outside for mark in place.marks)


def _refuse_unequal(model: nn.Module, function: OnCopies, batch: object) -> None:
    """Say what equal passes with other losses change, if it is found among large containers."""
    modules = list(every_module(model))
    reached = Reached([*modules, function.function], own=modules, many=_EVERY)
    _losses(model, function, batch, training=True)
    changed = reached.changed()
    reached.put_back()
    for place in changed:
        for length in range(len(place.path)):
            held = follow(place.root, place.path[:length])
            if isinstance(held, Sized) and len(held) > MANY:
                raise ConfigError(too_many(named(place.path[:length]), held))
    places = ", ".join(repr(named(place.path)) for place in changed)
    raise ConfigError(
        f"{function.name}(model, batch) gives other losses when it is run again on the same batch, "
        "with the model and all random states put back: it changes "
        f"{places or 'something that is out of reach, as a file or a device'}; let it depend on "
        "its arguments alone"
    )


def _backward(model: nn.Module, function: LossFn, batch: object) -> None:
    """Take gradients at the outputs of all calls of the layers, as shadow passes may."""
    roots: list[Tensor] = []

    def add_root(_layer: nn.Module, _args: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        roots.append(output.new_zeros(()).expand_as(output).requires_grad_())
        return output + roots[-1]

    layers = [module for module in model.modules() if isinstance(module, Seeded)]
    handles = [layer.register_forward_hook(add_root) for layer in layers]
    try:
        with side_effect_free(model, training=training_like_mode(model)), torch.enable_grad():
            freeze_statistics(model)
            gradients_of(example_losses(function, model, batch).sum(), roots)
    finally:
        for handle in handles:
            handle.remove()


def _losses(model: nn.Module, function: LossFn, batch: object, *, training: bool) -> list[Tensor]:
    """Losses of one pass; none if it fails."""
    with suppress(*FAULTS), side_effect_free(model, training=training), torch.no_grad():
        return [example_losses(function, model, batch).clone()]
    return []


def _split(places: Sequence[Place], modules: int) -> tuple[list[Place], list[Place]]:
    """Places of the model's modules, and places that the function reaches."""
    inside = [place for place in places if place.number < modules]
    return inside, [place for place in places if place.number >= modules]


def _refuse_if_lost(place: Place, names: dict[int, str]) -> None:
    root = names.get(id(place.root), "")
    name = ".".join(part for part in (root, named(place.path)) if part)
    if not place.restorable:
        raise ConfigError(
            f"{name!r} moves in every pass and cannot be put back, so passes on the side would "
            "change the training; count in an attribute instead of an iterator, and draw from a "
            "torch.Generator"
        )
    for length in range(1, len(place.path) + 1):
        holder = follow(place.root, place.path[:length])
        if id(place.root) not in names and isinstance(holder, nn.Module):
            raise ConfigError(
                f"loss_fn uses {named(place.path[:length])!r}, which is outside the model and "
                "changes in every pass, so passes on the side would change the training; make it a "
                "submodule of the model"
            )


def _equal(first: Tensor, second: Tensor) -> bool:
    # Sums on an accelerator differ in their last digits from run to run.
    alike = first.shape == second.shape
    return alike and torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)
