"""PyTorch's fused evaluation paths read the weights of layers and never call them.

``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` have one each. While nothing below them
has grown they may take it: the output is the host's, bit for bit. From the first kernel on they
must call their layers, so the attribute that allows the path is switched off.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from torch import nn

_ALLOWED_BY: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}


@final
@dataclass(frozen=True, slots=True)
class FusedPath:
    """A module that may pass a wrapped layer by, and the attribute that allows it."""

    module: nn.Module
    attribute: str
    value: Any

    def allow(self, allowed: bool) -> None:
        """Let the module take its fused path, as it did before, or not."""
        setattr(self.module, self.attribute, self.value if allowed else type(self.value)(0))


def enclosing_modules(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold the layer with this dotted name, the model itself first."""
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def fused_paths(model: nn.Module, name: str, known: Iterable[FusedPath]) -> tuple[FusedPath, ...]:
    """Those of the modules around the layer with this dotted name.

    Args:
        model: Any module.
        name: Dotted name of the layer.
        known: Those of other wrapped layers, which may have switched them off by now.
    """
    before = {(id(path.module), path.attribute): path for path in known}
    return tuple(
        before.get((id(module), attribute))
        or FusedPath(module, attribute, getattr(module, attribute))
        for module in enclosing_modules(model, name)
        for kind, attribute in _ALLOWED_BY.items()
        if isinstance(module, kind) and hasattr(module, attribute)
    )
