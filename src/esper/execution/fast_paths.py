"""PyTorch's fast paths around layers that grow: compiled graphs and fused evaluation.

``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` each have a fused path that reads the
weights of their layers and never calls them. It may stay on while nothing below has grown; from the
first kernel on, the attribute that allows it is switched off.
"""

import inspect
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from esper.contracts.errors import ConfigError

_ALLOWED_BY: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}


def drop_compiled_graphs() -> None:
    """Drop every compiled graph of the process; each is compiled again when it is next called.

    Dynamo keeps at most ``recompile_limit`` (8) graphs of a function and then runs it eagerly with
    a line in the log only, so the ninth growth would make a compiled model slow for good. There is
    no public way to drop the graphs of one model.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def force_eager() -> AbstractContextManager[object]:
    """Run compiled models eagerly, so that a pass on the side does not recompile the main one."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    return nullcontext()


def own_recompile_limit(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the setting of ``torch.compile`` that gives a layer a recompile limit of its own.

    All wrapped layers run the same code, so that compiled one by one they use up one limit. Older
    versions of PyTorch cannot keep them apart: raise ``torch._dynamo.config.recompile_limit``.
    """
    can = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    return {**({"isolate_recompiles": True} if can else {}), **settings}


@final
@dataclass(frozen=True, slots=True)
class FusedPath:
    """Module with a fused path past a wrapped layer, and the attribute that allows it."""

    module: nn.Module
    attribute: str
    value: Any

    def allow(self, allowed: bool) -> None:
        """Restore the attribute, or switch it off."""
        setattr(self.module, self.attribute, self.value if allowed else type(self.value)(0))


def enclosing_modules(model: nn.Module, name: str) -> list[nn.Module]:
    """Modules that hold the layer with this dotted name, the model itself first."""
    parts = name.split(".") if name else []
    modules = dict(model.named_modules(remove_duplicate=False))
    return [modules[".".join(parts[:depth])] for depth in range(len(parts))]


def refuse_unreached(model: nn.Module, name: str) -> None:
    """Refuse a layer that what holds it does not call, or cannot have another in place of.

    Raises:
        ConfigError: if it is such a layer.
    """
    outer = enclosing_modules(model, name)
    scripted = [depth for depth, one in enumerate(outer) if isinstance(one, torch.jit.ScriptModule)]
    if scripted:
        whole = ".".join(name.split(".")[: scripted[0]])
        way_out = f"wrap {whole!r} as a whole" if whole else "wrap the model before it is scripted"
        raise ConfigError(
            f"layer {name!r} is in a module of TorchScript, which cannot hold another; {way_out}"
        )
    if outer and isinstance(outer[-1], nn.MultiheadAttention):
        raise ConfigError(
            f"layer {name!r} is never called: nn.MultiheadAttention reads its weight directly. "
            "Wrap a layer outside it, as the feed-forward, or use an attention module that calls it"
        )
    if outer and isinstance(outer[-2:][0], nn.TransformerEncoder) and name.endswith("layers.0"):
        raise ConfigError(
            f"layer {name!r} is the first of an nn.TransformerEncoder, which reads its attributes, "
            "and a hardened model would not have them; wrap its linear1 or linear2, or a later one"
        )


def fused_paths(model: nn.Module, name: str, known: Iterable[FusedPath]) -> tuple[FusedPath, ...]:
    """Fused paths past the layer with this dotted name.

    ``known`` are those of other wrapped layers, which may have switched them off by now.
    """
    before = {(id(path.module), path.attribute): path for path in known}
    return tuple(
        before.get((id(module), attribute))
        or FusedPath(module, attribute, getattr(module, attribute))
        for module in enclosing_modules(model, name)
        for kind, attribute in _ALLOWED_BY.items()
        if isinstance(module, kind) and hasattr(module, attribute)
    )
