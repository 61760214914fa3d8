"""Optimizer of an isolated seed: one, or one for each kind of its parameters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer


@final
class SeedTrainer:
    """Steps a seed's parameters, each by the optimizer that was made for its kind.

    Optimizers that average weights, as schedule-free, are put into training mode for every step.

    Args:
        optimizers: They hold the seed's parameters, each once, and no others.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of all optimizers, in order."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """State of every parameter that was stepped."""
        return {p: state for one in self.optimizers for p, state in one.state.items()}

    def of(self, parameter: nn.Parameter) -> Optimizer | None:
        """The optimizer that holds a parameter."""
        return next((o for o in self.optimizers if _holds(o.param_groups, parameter)), None)

    def step(self) -> None:
        """One step of every optimizer, by the gradients that the parameters have."""
        for optimizer in self.optimizers:
            in_training_mode(optimizer)
            optimizer.step()

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State of the only optimizer, or of every one."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return states[0] if len(states) == 1 else {"optimizers": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``, over as many optimizers."""
        states = [state] if len(self.optimizers) == 1 else state["optimizers"]
        for optimizer, one in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(dict(one))


def in_training_mode(optimizer: Optimizer) -> None:
    """Switch an optimizer that has modes, as schedule-free, to the one that it can step in."""
    switch = getattr(optimizer, "train", None)
    if callable(switch):
        switch()


def _holds(groups: Iterable[Mapping[str, Any]], parameter: nn.Parameter) -> bool:
    return any(p is parameter for group in groups for p in group["params"])
