"""Harden: a grown model becomes a plain one, which runs where Esper is not installed."""

import operator
from copy import deepcopy
from typing import TypeVar

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, symbolic_trace

from esper.contracts.errors import KernelError
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.surgery import kasmina_layers, restore_fast_path

M = TypeVar("M", bound=nn.Module)


def harden(model: M) -> M:
    """Copy a wrapped model into a plain one with equal outputs.

    A layer that has not grown is its host again. A grown one becomes a ``torch.fx.GraphModule``
    that adds up the host and its kernels, in the order and arithmetic of the wrapped layer; a
    kernel that is still blending keeps its alpha as a buffer. Seeds in isolation have no part in
    the output and are left out. Nothing in the result is a class of Esper's, so ``torch.save``,
    ``torch.export`` and ``deepcopy`` need no Esper to read it.

    Args:
        model: A wrapped model; it is left as it is.

    Raises:
        KernelError: if a kernel of the user's own cannot be traced by ``torch.fx``.
    """
    plain = deepcopy(model)
    for name, layer in kasmina_layers(plain).items():
        parent, _, child = name.rpartition(".")
        holder = plain.get_submodule(parent)
        setattr(holder, child, _plain(layer))
        restore_fast_path(holder)
    return plain


def _plain(layer: KasminaLayer) -> nn.Module:
    if not layer.is_grown:
        return layer.host
    root, graph = nn.Module(), Graph()
    root.add_module("host", layer.host)
    x = graph.placeholder("x")
    seen = graph.call_method("clone", (x,)) if layer.mutates_input else x
    y = graph.call_module("host", (x,))
    for index, (kernel, alpha) in enumerate(layer.contributions()):
        root.add_module(f"kernel_{index}", _traced(kernel, layer.name))
        term = graph.call_module(f"kernel_{index}", (seen,))
        if alpha is not None:
            term = _scaled(root, graph, index, alpha, term)
        dtype = graph.call_function(getattr, (y, "dtype"))
        y = graph.call_function(operator.add, (y, graph.call_method("to", (term, dtype))))
    graph.output(y)
    grown = GraphModule(root, graph, class_name="GrownLayer")
    return grown.train(layer.training)


def _scaled(root: nn.Module, graph: Graph, index: int, alpha: Tensor, term: Node) -> Node:
    root.register_buffer(f"alpha_{index}", alpha.detach().clone())
    return graph.call_function(operator.mul, (graph.get_attr(f"alpha_{index}"), term))


def _traced(kernel: nn.Module, layer_name: str) -> nn.Module:
    if type(kernel).__module__.startswith("torch.nn."):
        return kernel
    try:
        traced = symbolic_trace(kernel)
    except (RuntimeError, TypeError, ValueError) as error:
        raise KernelError(
            f"a kernel of layer {layer_name!r} ({type(kernel).__name__}) cannot be traced by "
            f"torch.fx: {error}. Write its forward without control flow on tensor values"
        ) from error
    return traced.train(kernel.training)
