"""Static networks of a given size: the task's host made wider, plain or with gated units."""

from collections.abc import Callable

import torch
from torch import nn
from torch.fx import Node, symbolic_trace
from torch.nn import functional as F

from esper.execution.kernel import count_parameters
from esper.runs.references import width_of_size
from esper.tasks.base import Task

MODULES = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)
FUNCTIONS = (F.relu, F.gelu, F.silu, F.tanh, torch.relu, torch.tanh)
"""Activations that a gated linear unit can take the place of."""
Layer = nn.Linear | nn.Conv1d | nn.Conv2d


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
    """As `static`, with gated linear units; ``None`` if it has no hidden layer that could be."""

    def build(width: int, seed: int) -> nn.Module | None:
        host = task.host(seed, width=width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return gated(host)

    def size(width: int) -> int:
        model = build(width, 0)
        assert model is not None
        return count_parameters(model)

    return build(nearest_width(size, parameters), seed) if build(task.width, 0) else None


def gated(host: nn.Module) -> nn.Module | None:
    """The host with its hidden layers gated: ``act(W x)`` becomes ``(V x) * sigmoid(W x)``.

    An activation counts that is the only reader of a linear layer or convolution. Others stay, as
    that of a residual stream, which nothing writes alone. ``None`` if there is none that counts.
    """
    traced = symbolic_trace(host)
    found = [node for node in traced.graph.nodes if _is_activation(node, traced)]
    hidden = [(node, node.args[0]) for node in found if _is_layer(node.args[0], traced)]
    if not hidden:
        return None
    for node, before in hidden:
        layer = traced.get_submodule(before.target)
        assert isinstance(layer, Layer)
        _double(layer)
        with traced.graph.inserting_after(before):
            dim = -1 if isinstance(layer, nn.Linear) else 1
            glu = traced.graph.call_function(F.glu, (before,), {"dim": dim})
        node.replace_all_uses_with(glu)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced


def _is_activation(node: Node, traced: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), MODULES)
    return node.op == "call_function" and node.target in FUNCTIONS


def _is_layer(node: object, traced: nn.Module) -> bool:
    return (
        isinstance(node, Node)
        and node.op == "call_module"
        and len(node.users) == 1
        and isinstance(traced.get_submodule(str(node.target)), Layer)
    )


def _double(layer: Layer) -> None:
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
