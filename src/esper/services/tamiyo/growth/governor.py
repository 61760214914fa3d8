"""The governor: when blending a kernel in makes the host fall ill, the host gets its health back.

While a kernel is being blended in, the state at the end of the last healthy epoch is kept aside. If
the held-out loss then is NaN, infinite, or several times what it was, weights, buffers and
optimizer state are put back, in place, and whatever was blending is culled as a failure. Without a
kernel at fault nothing is touched: what a training does by itself is the user's affair.

The state is kept in memory only: a run that is resumed while a kernel blends in is not protected
until the next epoch ends.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.execution.concealed import every_tensor


@final
class Governor:
    """Keeps one healthy state and puts it back; frozen parameters, which stay as they are, aside.

    A loss of ``divergence_factor`` times the last healthy one, > 1, is ill.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        divergence_factor: float,
    ) -> None:
        self.model = model
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
        self.divergence_factor = divergence_factor
        self.epoch = -1
        self._loss = float("inf")
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._states: list[dict[Tensor, dict[str, Any]]] = []

    def objection(self, loss: float) -> str:
        """Objection to a held-out loss; empty if it is healthy, or no state is kept."""
        if not self._tensors:
            return ""
        if not isfinite(loss):
            return f"the held-out loss became {loss}"
        # Written so that a loss below zero, as a log-likelihood, is judged by its size too.
        if loss - self._loss > (self.divergence_factor - 1) * abs(self._loss) > 0:
            return (
                f"the held-out loss went from {self._loss:.4g} to {loss:.4g}, by more than "
                f"{self.divergence_factor - 1:g} times its size"
            )
        return ""

    def keep(self, loss: float, epoch: int) -> None:
        """Keep the present state aside as the healthy one; its held-out loss is ``loss``."""
        self.epoch, self._loss = epoch, loss
        with torch.no_grad():
            frozen = {p for p in self.model.parameters() if not p.requires_grad}
            self._tensors = [(t, t.clone()) for t in every_tensor(self.model) if t not in frozen]
        self._states = [
            {
                parameter: {key: _copied(value) for key, value in state.items()}
                for parameter, state in optimizer.state.items()
            }
            for optimizer in self.optimizers
        ]

    def let_go(self) -> None:
        """Keep nothing: no kernel is being blended in."""
        self._tensors, self._states = [], []

    def restore(self) -> None:
        """Put the healthy state back, in place; then keep nothing."""
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.copy_(value)
        for optimizer, states in zip(self.optimizers, self._states, strict=False):
            for parameter in {p for group in optimizer.param_groups for p in group["params"]}:
                if parameter in states:
                    optimizer.state[parameter] = states[parameter]
                else:
                    optimizer.state.pop(parameter, None)
        self.let_go()


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
