"""Seed: a slot of a layer with its state, bound blueprint, alpha and kernel."""

from typing import Any, final

import torch
from torch import Tensor

from esper.contracts.errors import LifecycleError
from esper.contracts.seeds import SeedState
from esper.execution import lifecycle
from esper.execution.concealed import Concealing
from esper.execution.kernel import Kernel, Recipe


@final
class Seed(Concealing):
    """Slot of a layer; its kernel is concealed while the slot's state is an isolated one.

    Args:
        name: As in ``"2 of layer 'fc1'"``, for messages.
        blueprint: Name of the blueprint that it is bound to; empty for none.
        like: Tensor whose device and floating-point type alpha, and then the kernel, take on.
    """

    alpha: Tensor

    def __init__(self, name: str, blueprint: str, like: Tensor | None = None) -> None:
        super().__init__()
        self.name = name
        self.blueprint = blueprint
        self.state = SeedState.DORMANT
        self.kernel_id: str | None = None
        self.recipe: Recipe | None = None
        zero = torch.zeros(()) if like is None else like.new_zeros((), requires_grad=False)
        # A buffer, so that a ramping alpha neither recompiles a compiled model nor is trained.
        self.register_buffer("alpha", zero)

    def hold(self, kernel: Kernel) -> None:
        """Put a kernel into the slot, concealed."""
        self.place(kernel.module, concealed=True)
        self.kernel_id, self.recipe = kernel.kernel_id, kernel.recipe
        self.alpha.zero_()

    def drop(self) -> None:
        """Empty the slot."""
        self.place(None, concealed=False)
        self.kernel_id = self.recipe = None
        self.alpha.zero_()

    def move(self, state: SeedState) -> None:
        """Set the state, which says whether the kernel is concealed."""
        self.state = state
        self.place(self.kernel, concealed=state in lifecycle.ISOLATED)

    def as_kernel(self) -> Kernel:
        """Kernel in the slot.

        Raises:
            LifecycleError: if it is empty.
        """
        if self.kernel is None or self.kernel_id is None:
            raise LifecycleError(f"seed {self.name} is {self.state} and has no kernel")
        return Kernel(module=self.kernel, kernel_id=self.kernel_id, recipe=self.recipe)

    def to_json(self) -> dict[str, Any]:
        """State of the slot beside its tensors, for a checkpoint."""
        return {
            "state": str(self.state),
            "blueprint": self.blueprint,
            "kernel_id": self.kernel_id,
            "recipe": self.recipe.to_json() if self.recipe else None,
            "loaded": self.kernel is not None,
        }
