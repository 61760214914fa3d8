"""The kernel: what a blueprint built for one layer, with its id, its recipe and its cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from torch import nn

from esper import blueprints
from esper.contracts.errors import KernelError
from esper.contracts.seeds import KernelCost, LayerSpec

FAULTS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    KernelError,
)
"""What a faulty kernel raises when it is built or run; whoever tries one out is ready for these."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that is needed to build a kernel's structure again; its weights are kept elsewhere.

    Attributes:
        blueprint: Name in the blueprint table.
        spec: The layer it was built for.
        budget: Parameters it might cost at most; it settles the width.
        seed: What its first weights were drawn from.
    """

    blueprint: str
    spec: LayerSpec
    budget: int
    seed: int

    def build(self) -> nn.Module:
        """A kernel of this structure, as it was at birth."""
        return blueprints.build(self.blueprint, self.spec, budget=self.budget, seed=self.seed)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, read back by ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Undo ``to_json``."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in data["spec"].items()
        }
        return cls(**{**data, "spec": LayerSpec(**fields)})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A small module that reads a layer's input and adds to its output.

    Attributes:
        module: Maps the layer's input to the shape of the layer's output; zero at birth.
        kernel_id: A name chosen by whoever built it, unique in its run.
        recipe: How to build its structure again; ``None`` for a module of the user's own, which
            then must be loaded by hand before a state dict that holds it.
        cost: Parameters, and latency where it was measured.
    """

    module: nn.Module
    kernel_id: str
    recipe: Recipe | None = None
    cost: KernelCost | None = None

    @property
    def blueprint(self) -> str:
        """Name of the blueprint; empty for a module of the user's own."""
        return self.recipe.blueprint if self.recipe else ""


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
