"""Kernels: module, id, recipe and cost, and the check that one fits its layer."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from esper import blueprints
from esper.contracts.errors import KernelError
from esper.contracts.seeds import KernelCost, LayerSpec, Piece
from esper.execution.concealed import every_module
from esper.execution.side_effect_free import side_effect_free

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
"""Errors that a faulty kernel raises when it is built or run."""

Shape = tuple[int, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Arguments that build a kernel's structure again; its weights are kept elsewhere.

    Attributes:
        blueprint: Name in the blueprint table.
        spec: The layer it was built for.
        budget: Parameters, at most; determines the width.
        seed: Of the initial weights.
    """

    blueprint: str
    spec: LayerSpec
    budget: int
    seed: int

    def build(self) -> nn.Module:
        """Build a kernel of this structure, with its initial weights, in float32 on the CPU.

        PyTorch's default type and device, which are the user's, change nothing.
        """
        return blueprints.build(
            self.blueprint,
            self.spec,
            budget=self.budget,
            seed=self.seed,
            dtype=torch.float32,
            device="cpu",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, read back by ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Undo ``to_json``."""
        return cls(**{**data, "spec": spec_from(data["spec"])})


def spec_from(data: Mapping[str, Any]) -> LayerSpec:
    """Specification of a layer from the JSON data of its fields."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    pieces = (dict(piece) for piece in data.get("pieces", ()))
    fields["pieces"] = tuple(Piece(**{**p, "shape": tuple(p["shape"])}) for p in pieces)
    return LayerSpec(**fields)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Small module that reads a layer's input and adds to its output.

    Attributes:
        module: Maps the layer's input to the shape of the layer's output; zero at birth.
        kernel_id: Unique in its run.
        recipe: Builds its structure again; ``None`` for a custom module, which then must be loaded
            by hand before a state dict that holds it.
        cost: Parameters, and latency where it was measured.
    """

    module: nn.Module
    kernel_id: str
    recipe: Recipe | None = None
    cost: KernelCost | None = None

    @property
    def blueprint(self) -> str:
        """Name of the blueprint; empty for a custom module."""
        return self.recipe.blueprint if self.recipe else ""


class Contribution(NamedTuple):
    """Kernel in a layer's output, its weight, and its blueprint."""

    kernel: nn.Module
    alpha: Tensor | None
    """``None`` once it is absorbed."""
    blueprint: str
    """Empty for a custom module."""
    kernel_id: str


@final
@dataclass(frozen=True, slots=True)
class Join:
    """A parameter or buffer of the host, what a kernel adds to it, and how the two make one."""

    host: Tensor
    piece: Tensor
    whole: Callable[[Tensor, Tensor], Tensor]


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module, shared ones once, isolated kernels included."""
    held = {
        id(p): p.numel() for part in every_module(module) for p in part.parameters(recurse=False)
    }
    return sum(held.values())


def check_kernel(
    kernel: Kernel, layer: str, host: nn.Module, spec: LayerSpec | None, *, like: Tensor
) -> None:
    """Run the kernel once on zeros of the layer's shape, as ``spec``, recipe or host tell it.

    Nothing is checked if none of them does. ``like`` has the kernel's device and type.

    Raises:
        KernelError: if the kernel fails, writes into its input, or gives anything but the shape
            that the layer writes.
    """
    shapes = _known_shapes(kernel, host, spec)
    if shapes is None:
        return
    x_shape, y_shape = shapes
    x = like.new_zeros(x_shape)
    version = x._version
    try:
        with torch.no_grad(), side_effect_free(kernel.module):
            y = kernel.module(x)
    except FAULTS as error:
        raise KernelError(
            f"kernel {kernel.kernel_id!r} fails on the input of layer {layer!r}, shape "
            f"{x_shape}: {error}"
        ) from error
    if x._version != version:
        raise KernelError(
            f"kernel {kernel.kernel_id!r} writes into the input of layer {layer!r}, which the host "
            "reads too; let it work on a copy, as x + 1 does and x.add_(1) does not"
        )
    found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if found != y_shape:
        raise KernelError(
            f"kernel {kernel.kernel_id!r} maps {x_shape} to {found}, but layer {layer!r} "
            f"maps it to {y_shape}; the two are added, so they must be equal"
        )


def can_learn(kernel: Kernel, host: nn.Module, spec: LayerSpec | None, *, like: Tensor) -> bool:
    """True if the kernel runs, forward and backward, on zeros of the shape it was built for.

    So a kernel that failed in a training is told from a training that failed. Without a known shape
    nothing can be held against the kernel: true.
    """
    shapes = _known_shapes(kernel, host, spec)
    if shapes is None:
        return True
    parameters = [p for p in kernel.module.parameters() if p.requires_grad]
    try:
        with torch.enable_grad(), side_effect_free(kernel.module):
            y = kernel.module(like.new_zeros(shapes[0]))
            torch.autograd.grad(y.sum(), parameters, allow_unused=True)
    except FAULTS:
        return False
    return True


def _known_shapes(
    kernel: Kernel, host: nn.Module, spec: LayerSpec | None
) -> tuple[Shape, Shape] | None:
    if spec is None and kernel.recipe is not None:
        spec = kernel.recipe.spec
    if isinstance(host, nn.Linear):
        spec = spec or LayerSpec(kind="features", in_size=1, out_size=1)
        spec = replace(spec, in_size=host.in_features, out_size=host.out_features)
    if spec is None or spec.pieces:
        return None
    return spec.input_shape(2, 3), spec.output_shape(2, 3)
