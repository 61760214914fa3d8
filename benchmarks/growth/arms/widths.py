"""Static networks of a given size: the task's host made wider, plain or with gated units."""

from collections.abc import Callable

import torch
from torch import nn

from esper.execution.kernel import count_parameters
from esper.runs.references import width_of_size
from esper.tasks.base import Task

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)


def nearest_width(size: Callable[[int], int], parameters: int) -> int:
    """Width, >= 1, whose size comes nearest to a number of parameters; ``size`` rises with it."""
    width = 1
    while size(width) < parameters:
        width += 1
    return min({max(width - 1, 1), width}, key=lambda w: abs(size(w) - parameters))


def static(task: Task, seed: int, parameters: int) -> nn.Module:
    """The task's host, as wide as brings it nearest to a number of parameters."""
    return task.host(seed, width=width_of_size(task, parameters))


def static_gated(task: Task, seed: int, parameters: int) -> nn.Module | None:
    """As `static`, with gated linear units; ``None`` if `gate` cannot tell what to double."""
    if not gate(task.host(seed)):
        return None

    def build(width: int, seed: int) -> nn.Module:
        host = task.host(seed, width=width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            gate(host)
        return host

    return build(nearest_width(lambda w: count_parameters(build(w, 0)), parameters), seed)


def gate(host: nn.Module) -> bool:
    """Make every activation a gated linear unit, in place; the layer before writes twice as much.

    Layers that feed an activation are known where both stand in one ``nn.Sequential``; if one
    activation stands elsewhere, or behind something else, nothing is changed and the answer is no.
    """
    pairs = [
        (before, chain, name)
        for chain in host.modules()
        if isinstance(chain, nn.Sequential)
        for before, (name, act) in zip(
            chain.children(), list(chain.named_children())[1:], strict=False
        )
        if isinstance(act, ACTIVATIONS)
    ]
    producers = [_last(before) for before, _, _ in pairs]
    activations = sum(isinstance(m, ACTIVATIONS) for m in host.modules())
    if not pairs or len(pairs) != activations or None in producers:
        return False
    for (_, chain, name), producer in zip(pairs, producers, strict=True):
        assert producer is not None
        _double(producer)
        setattr(chain, name, nn.GLU(dim=-1 if isinstance(producer, nn.Linear) else 1))
    return True


def _last(module: nn.Module) -> "nn.Linear | nn.Conv1d | nn.Conv2d | None":
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return module if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) else None


def _double(layer: "nn.Linear | nn.Conv1d | nn.Conv2d") -> None:
    """Double what a layer writes; all its weights are drawn anew."""
    for name in ("weight", "bias"):
        old = getattr(layer, name)
        if old is not None:
            setattr(layer, name, nn.Parameter(old.data.new_empty(2 * len(old), *old.shape[1:])))
    if isinstance(layer, nn.Linear):
        layer.out_features *= 2
    else:
        layer.out_channels *= 2
    layer.reset_parameters()
