"""Kernels of many runs in one: four blueprints in one form, as wide as the widest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.blueprints import build
from esper.contracts.seeds import LayerSpec
from esper.execution.training.whitening import whitening

# R runs, K kernels of a site, w units, F features read, G written, B examples

KINDS = ("gate", "glu", "bottleneck", "lowrank")


@dataclass
class Kernels:
    """K kernels of one site in R runs: ``U act(V x + b, W x + c)``, each of a kind of its own.

    A kernel that is not there, and units beyond its width, are zero, and stay so: they have no
    gradient, and the bias of a kind that has none is masked.

    Attributes:
        V_RKwF: First map.
        bias: Its bias, (R, K, w).
        W_RKwF: Map of the switches; of ``gate`` the first row is for all units.
        switch_bias: Its bias, (R, K, w).
        U_RKGw: Second map.
        kinds: Place of each one's blueprint in ``KINDS``, (R, K).
    """

    V_RKwF: Tensor
    bias: Tensor
    W_RKwF: Tensor
    switch_bias: Tensor
    U_RKGw: Tensor
    kinds: Tensor

    @classmethod
    def none(cls, runs: int, count: int, width: int, sizes: tuple[int, int]) -> Self:
        """Kernels that are not there."""
        read, written = sizes
        shape = (runs, count, width)
        return cls(
            V_RKwF=torch.zeros(*shape, read),
            bias=torch.zeros(shape),
            W_RKwF=torch.zeros(*shape, read),
            switch_bias=torch.zeros(shape),
            U_RKGw=torch.zeros(runs, count, written, width),
            kinds=torch.zeros(runs, count, dtype=torch.long),
        )

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [getattr(self, one.name) for one in fields(self) if one.name != "kinds"]

    def put(self, run: int, at: int, blueprint: str, module: nn.Module) -> None:
        """Put a kernel of the product in."""
        values = dict(module.named_parameters())
        down, up = values["down.weight"].detach(), values["up.weight"].detach()
        width = up.shape[1]
        self.kinds[run, at] = KINDS.index(blueprint)
        self.V_RKwF[run, at, :width] = down[:width]
        self.U_RKGw[run, at, :, :width] = up
        switch = values["switch.weight"].detach() if blueprint == "gate" else down[width:]
        self.W_RKwF[run, at, : len(switch)] = switch
        if blueprint == "gate":
            self.switch_bias[run, at, 0] = values["switch.bias"].detach()[0]
        elif "down.bias" in values:
            bias = values["down.bias"].detach()
            self.bias[run, at, :width] = bias[:width]
            self.switch_bias[run, at, : len(switch)] = bias[width:]

    def each(self, x_R1BF: Tensor) -> Tensor:
        """What each kernel adds to what the host makes of one input, (R, K, B, G)."""
        hidden_RKBw = self._hidden(x_R1BF, self.V_RKwF.shape[1])[:, 0].transpose(1, 2)
        made: Tensor = hidden_RKBw @ self.U_RKGw.mT
        return made

    def together(self, x_RABF: Tensor, alpha_K: Tensor) -> Tensor:
        """What the first kernels, as many as have an alpha, add together, (R, A, B, G)."""
        count = len(alpha_K)
        hidden = (self._hidden(x_RABF, count) * alpha_K[:, None]).flatten(-2)
        U_RG = self.U_RKGw[:, :count].transpose(1, 2).flatten(2)
        made: Tensor = hidden @ U_RG[:, None].mT
        return made

    def _hidden(self, x_RABF: Tensor, count: int) -> Tensor:
        """Hidden units, (R, A, B, K, w); all kernels are one matrix product."""
        kind = self.kinds[:, None, None, :count, None]
        gate, glu, hidden, _ = (kind == number for number in range(len(KINDS)))
        h, g = (
            torch.unflatten(x_RABF @ one[:, None, :count].flatten(2, 3).mT, -1, (count, -1))
            for one in (self.V_RKwF, self.W_RKwF)
        )
        h = h + self.bias[:, None, None, :count] * (hidden | glu)
        g = g + self.switch_bias[:, None, None, :count]
        switched = h * torch.sigmoid(torch.where(gate, g[..., :1], g))
        straight = torch.where(hidden, F.gelu(h), h)
        return torch.where(gate | glu, switched, straight)


def built(
    spec: LayerSpec,
    blueprints: Sequence[str],
    seeds: Sequence[Sequence[int]],
    budget: int,
    x_RBF: Tensor,
) -> Kernels:
    """Fresh kernels as the product builds them, and as they are after the first look.

    Args:
        spec: The site.
        blueprints: K of them.
        seeds: Seed of the initial values, by run and kernel.
        budget: Parameters of each.
        x_RBF: What the site reads of the first batch.
    """
    made = [
        [
            build(name, spec, budget=budget, seed=seed)
            for name, seed in zip(blueprints, row, strict=True)
        ]
        for row in seeds
    ]
    for x_BF, row in zip(x_RBF, made, strict=True):
        for module in row:
            with whitening(module), torch.no_grad():
                module(x_BF)
    width = max(module.get_parameter("up.weight").shape[1] for module in made[0])
    found = Kernels.none(len(seeds), len(blueprints), width, (spec.in_size, spec.out_size))
    for run, row in enumerate(made):
        for at, (name, module) in enumerate(zip(blueprints, row, strict=True)):
            found.put(run, at, name, module)
    return found


class Adam:
    """AdamW over stacked tensors; kernels of a site may have taken different numbers of steps.

    Args:
        tensors: Leaves, (R, ...) or, with ``kernels``, (R, K, ...).
        decay: Decoupled weight decay.
        kernels: Number of kernels K, each with a step count of its own.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float, kernels: int = 1) -> None:
        self.tensors = list(tensors)
        self.decay = decay
        self.first = [torch.zeros_like(one) for one in tensors]
        self.second = [torch.zeros_like(one) for one in tensors]
        self.steps_K = torch.zeros(kernels)

    def step(self, lr: float, gradients: Sequence[Tensor], stepped: int | None = None) -> None:
        """Take a step; ``stepped`` kernels take part, all by default."""
        self.steps_K[:stepped] += 1
        steps = self.steps_K.clamp(min=1).double()
        with torch.no_grad():
            rows = zip(self.tensors, gradients, self.first, self.second, strict=True)
            for tensor, gradient, first, second in rows:
                shape = (1, -1, *[1] * (tensor.dim() - 2)) if len(steps) > 1 else ()
                one = (1 - 0.9**steps).float().reshape(shape)
                two = (1 - 0.999**steps).sqrt().float().reshape(shape)
                tensor.mul_(1 - lr * self.decay)
                first.lerp_(gradient, 0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                tensor.sub_(lr / one * first / (second.sqrt() / two + 1e-8))

    def stacks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each tensor with its two moments."""
        return zip(self.tensors, self.first, self.second, strict=True)
