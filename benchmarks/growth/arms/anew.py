"""A grown network's own architecture with initial weights, to be trained from scratch."""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from esper.execution.harden import harden
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Recipe
from esper.execution.surgery import kasmina_layers, seeded_modules


def anew(grown: nn.Module, host: nn.Module, seed: int) -> nn.Module:
    """Plain network of the grown one's topology, all its kernels at full strength from the start.

    Kernels have the weights that they were born with; the host those of ``host``, the un-grown one
    with its initial weights. Tensors of a shape that ``host`` does not have were widened, and are
    drawn from ``seed`` by their module. Kernels still in isolation are left out: they are no part
    of the output.

    Raises:
        ValueError: if a kernel has no recipe, or a widened module cannot draw its weights.
    """
    copy = deepcopy(grown)
    for site in seeded_modules(copy).values():
        site.settle()  # widths become plain, larger modules; layers stay
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in kasmina_layers(copy).values():
            _bear_again(layer)
        known = host.state_dict()
        for name, module in _host_modules(copy):
            _initialise(module, name, known)
    return harden(copy)


def _bear_again(layer: KasminaLayer) -> None:
    packed = json.loads(bytes(layer.get_extra_state().tolist()))
    recipes = {
        part["kernel_id"]: part["recipe"]
        for part in (*packed["fossils"], *packed["seeds"])
        if part["kernel_id"] is not None
    }
    for part in layer.contributions():
        recipe = recipes[part.kernel_id]
        if recipe is None:
            raise ValueError(f"kernel {part.kernel_id!r} has no recipe to be built from again")
        part.kernel.load_state_dict(Recipe.from_json(recipe).build().state_dict())
        if part.alpha is not None:
            part.alpha.fill_(1.0)


def _host_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules of the host by their name in the plain host; kernels and wrappers are left out."""
    found: list[tuple[str, nn.Module]] = []

    def walk(name: str, module: nn.Module) -> None:
        if isinstance(module, KasminaLayer):
            walk(name, module.host)
            return
        found.append((name, module))
        for child, part in module.named_children():
            walk(f"{name}.{child}" if name else child, part)

    walk("", model)
    return found


def _initialise(module: nn.Module, name: str, known: Mapping[str, Tensor]) -> None:
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    initial = {key: known.get(f"{name}.{key}" if name else key) for key in own}
    if any(value is None or value.shape != own[key].shape for key, value in initial.items()):
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is None:
            raise ValueError(f"{name!r} ({type(module).__name__}) was widened and has no "
                             "reset_parameters to draw its weights")  # fmt: skip
        reset()
    for key, value in initial.items():
        if value is not None and value.shape == own[key].shape:
            own[key].copy_(value)
