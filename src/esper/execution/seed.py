"""One slot of a layer: a state, a bound blueprint, and a kernel while there is one."""

from typing import Any, final

import torch
from torch import Tensor, nn

from esper.contracts.errors import LifecycleError
from esper.contracts.seeds import SeedState
from esper.execution.kernel import Kernel, Recipe


@final
class Seed(nn.Module):
    """One slot of a layer.

    Args:
        name: ``"layer:index"``, for messages.
        blueprint: What this slot grows into; empty if that is left open.
        like: Tensor whose device and floating-point type alpha, and then the kernel, take on.
    """

    alpha: Tensor

    def __init__(self, name: str, blueprint: str, like: Tensor | None = None) -> None:
        super().__init__()
        self.name = name
        self.blueprint = blueprint
        self.state = SeedState.DORMANT
        self.kernel: nn.Module | None = None
        self.kernel_id: str | None = None
        self.recipe: Recipe | None = None
        zero = torch.zeros(()) if like is None else like.new_zeros((), requires_grad=False)
        # A buffer, so that a ramping alpha neither recompiles a compiled model nor is trained.
        self.register_buffer("alpha", zero)

    def hold(self, kernel: Kernel) -> None:
        """Take a kernel into the slot."""
        self.kernel, self.kernel_id, self.recipe = kernel.module, kernel.kernel_id, kernel.recipe
        self.alpha.zero_()

    def drop(self) -> None:
        """Empty the slot."""
        self.kernel = self.kernel_id = self.recipe = None
        self.alpha.zero_()

    def as_kernel(self) -> Kernel:
        """What the slot holds.

        Raises:
            LifecycleError: if it is empty.
        """
        if self.kernel is None or self.kernel_id is None:
            raise LifecycleError(f"seed {self.name} is {self.state} and has no kernel")
        return Kernel(module=self.kernel, kernel_id=self.kernel_id, recipe=self.recipe)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint must know of the slot beside its tensors."""
        return {
            "state": str(self.state),
            "blueprint": self.blueprint,
            "kernel_id": self.kernel_id,
            "recipe": self.recipe.to_json() if self.recipe else None,
            "loaded": self.kernel is not None,
        }
