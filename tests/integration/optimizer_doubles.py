"""Optimizers and schedulers as other libraries write them, in few lines."""

from typing import Any

import torch
from torch.optim import SGD, Optimizer
from typing_extensions import override


class Bookkeeper(SGD):
    """Wants to be told of every group, as ZeRO, so that none grows behind its back."""

    def __init__(self, params: Any, lr: float = 0.02, **settings: Any) -> None:
        self.books: list[int] = []
        super().__init__(params, lr=lr, **settings)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.books.append(len(param_group["params"]))


class MatricesOnly(SGD):
    """Refuses what has not two axes, as Muon."""

    def __init__(self, params: Any, lr: float = 0.02) -> None:
        super().__init__(params, lr=lr)
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("MatricesOnly supports 2D parameters only")


class SharpnessAware(Optimizer):
    """Two steps and a base optimizer that shares its groups, as the SAM of public code."""

    def __init__(self, params: Any, base_optimizer: type[Optimizer], **settings: Any) -> None:
        super().__init__(params, {"rho": 0.05, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.clone()
                    p.add_(p.grad, alpha=group["rho"])

    @torch.no_grad()
    def second_step(self) -> None:
        for p, state in self.state.items():
            p.copy_(state["old"])
        self.base_optimizer.step()

    @override
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError("call first_step and second_step")


class Wrapper(Optimizer):
    """Hands everything to the optimizer that it wraps, as accelerate's and Lightning's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    @override
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    @override
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @override
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()


class SlowWeights(Wrapper):
    """Pulls weights to copies that it made of them when they were added, as Lookahead."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.slow: dict[torch.Tensor, torch.Tensor] = {}
        for group in optimizer.param_groups:
            self._copy(group)

    @property
    @override
    def state(self) -> Any:  # type: ignore[override]
        return self.slow

    def _copy(self, group: dict[str, Any]) -> None:
        self.slow |= {p: p.detach().clone() for p in group["params"]}

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)
        self._copy(self.param_groups[-1])

    @override
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.lerp_(self.slow[p], 0.5)
                self.slow[p].copy_(p)


class WarmupScheduler:
    """A scheduler that is none of torch's: lists with names of their own, as timm's."""

    def __init__(self, optimizer: Optimizer, *, warmup: int = 3) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_values = [group["initial_lr"] for group in optimizer.param_groups]
        self.warmup_steps = [value / warmup for value in self.base_values]
        self.decay_t = [30]
        self.noise_range_t = [0]
        self.warmup = warmup
        self.turn = 0
        self.step()

    def step(self) -> None:
        self.turn += 1
        rates = [
            self.turn * step if self.turn < self.warmup else value * 0.9 ** (self.turn - 3)
            for value, step in zip(self.base_values, self.warmup_steps, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class ScheduleWrapper:
    """Holds a scheduler as its attribute, as accelerate's."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def step(self) -> None:
        self.scheduler.step()
