"""Hardening: a copy of a grown model that needs no Esper."""

import inspect
import operator
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, symbolic_trace

from esper.blueprints import is_placebo
from esper.contracts.errors import KernelError
from esper.execution.copies.folders import HARDENED, mark_folders
from esper.execution.copies.models import copy_model
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Contribution
from esper.execution.surgery import forget_topology, kasmina_layers, replace_layers, seeded_modules

M = TypeVar("M", bound=nn.Module)

ADAPTERS = "_esper_adapters"
"""Attribute of a model with what `esper.adapters` knows of it; a plain copy has none."""

_GROWN = "GrownLayer"
_ENGINES = ("esper.services.", "esper.integrations.")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def harden(model: M) -> M:
    """Copy a wrapped model into a plain one with equal outputs.

    A layer that has not grown is its host again. A grown one becomes a ``torch.fx.GraphModule``
    that adds up the host and its kernels, in the order and arithmetic of the wrapped layer; a
    kernel that is still blending keeps its alpha as a buffer. Seeds in isolation are left out, and
    placebos: what they add depends on the other examples of a batch.
    Nothing in the result is a class of Esper's, so ``torch.save``, ``torch.export`` and
    ``deepcopy`` need no Esper; a custom kernel stays the module that it is. The copy of a compiled
    model is not compiled. A model that reads attributes of a grown layer, as ``self.fc.weight``,
    finds them in ``self.fc.host`` only. Of tensors that were computed, as ``self.aux_loss``, the
    copy has the values; an attribute that cannot be copied, as a lock, is shared, and one that
    holds the engine, as ``self.tamiyo``, is ``None``.

    Raises:
        ConfigError: if a module of the model cannot be copied.
        KernelError: if a blueprint's kernel cannot be traced by ``torch.fx``.
    """
    plain = copy_model(model)
    _forget_engines(plain)
    layers = list(kasmina_layers(plain).values())
    for site in seeded_modules(plain).values():
        site.settle()
    # Inner layers first, so that what takes the place of an outer one holds plain modules.
    for layer in reversed(layers):
        plain = replace_layers(plain, {layer: _plain(layer)})
    forget_topology(plain)
    for module in plain.modules():
        vars(module).pop(ADAPTERS, None)
    mark_folders(plain, lambda module: type(module).__name__ == _GROWN, HARDENED)
    return plain


def _forget_engines(plain: nn.Module) -> None:
    for module in plain.modules():
        for name, value in vars(module).items():
            if type(value).__module__.startswith(_ENGINES):
                vars(module)[name] = None


def _plain(layer: KasminaLayer) -> nn.Module:
    heard = layer.contributions() if layer.is_grown else []  # not what `esper.disabled` silences
    parts = [part for part in heard if not is_placebo(part.blueprint)]
    host = layer.release_host()
    if not parts:
        return host
    root, graph = nn.Module(), Graph()
    root.add_module("host", host)
    x, *further = _arguments(graph, layer.host)
    seen = graph.call_method("clone", (x,)) if layer.mutates_input else x
    y = graph.call_module("host", (x,), {str(node.target): node for node in further})
    for index, part in enumerate(parts):
        root.add_module(f"kernel_{index}", _without_esper(part, layer.name))
        term = graph.call_module(f"kernel_{index}", (seen,))
        if part.alpha is not None:
            term = _scaled(root, graph, index, part.alpha, term)
        dtype = graph.call_function(getattr, (y, "dtype"))
        y = graph.call_function(operator.add, (y, graph.call_method("to", (term, dtype))))
    graph.output(y)
    grown = GraphModule(root, graph, class_name=_GROWN)
    grown.training = layer.training  # its parts keep the mode that they have
    return grown


def _arguments(graph: Graph, host: nn.Module) -> list[Node]:
    """Arguments of the host, by name and with their defaults, so that it is called as before."""
    try:
        declared: Mapping[str, inspect.Parameter] = inspect.signature(host.forward).parameters
    except (TypeError, ValueError):
        declared = {}
    named = [p for p in declared.values() if p.kind not in _VARIADIC]
    if not named:
        return [graph.placeholder("x")]
    return [graph.placeholder(p.name, default_value=p.default) for p in named]


def _scaled(root: nn.Module, graph: Graph, index: int, alpha: Tensor, term: Node) -> Node:
    root.register_buffer(f"alpha_{index}", alpha.detach().clone())
    return graph.call_function(operator.mul, (graph.get_attr(f"alpha_{index}"), term))


def _without_esper(part: Contribution, layer_name: str) -> nn.Module:
    kernel = part.kernel
    homes = {type(module).__module__.partition(".")[0] for module in kernel.modules()}
    # A custom module is not traced: tracing would fix its branches on `self.training`.
    if homes <= {"torch"} or not (part.blueprint or "esper" in homes):
        return kernel
    try:
        traced = symbolic_trace(kernel)
    except (RuntimeError, TypeError, ValueError) as error:
        raise KernelError(
            f"a kernel of layer {layer_name!r} ({type(kernel).__name__}) cannot be traced by "
            f"torch.fx: {error}. Write its forward without control flow on tensor values"
        ) from error
    return traced.train(kernel.training)
