"""Models with kernels in their widths, and what is known of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import esper
from esper.blueprints import BLUEPRINTS
from esper.contracts.seeds import SeedState
from esper.execution.kernel import Kernel, Recipe
from esper.execution.passes.batches import tensors_in
from esper.execution.surgery import seeded_modules
from esper.widths.kasmina_width import KasminaWidth
from tests.unit.widths.test_found import CASES

Made = tuple[nn.Module, Any]


def made(case: str) -> Made:
    """A model that can grow in its widths, and its example."""
    make, example, _ = CASES[case]
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # its draws depend on the number of units
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif not tensor.any() and tensor.is_floating_point():
                tensor.normal_()  # as in a branch that is born zero
    return model, example


def wrapped(case: str) -> Made:
    model, example = made(case)
    return esper.wrap(model, widen="auto", example=example), example


def widths(model: nn.Module) -> list[KasminaWidth]:
    return [w for w in seeded_modules(model).values() if isinstance(w, KasminaWidth)]


def kernel_of(width: KasminaWidth, units: int = 2, seed: int = 0, name: str = "") -> Kernel:
    spec = width.spec
    assert spec is not None
    name = name or ("heads" if width.heads else "units")
    budget = BLUEPRINTS.create(name).count(spec, units)
    recipe = Recipe(blueprint=name, spec=spec, budget=budget, seed=seed)
    return Kernel(module=recipe.build(), kernel_id=f"{width.name}:{seed}", recipe=recipe)


def grow(
    width: KasminaWidth,
    seed_idx: int = 0,
    units: int = 2,
    *,
    awake: bool = True,
    to: str = "blending",
) -> nn.Module:
    """Load a kernel and take it as far as a state; awake ones have columns that are not zero."""
    kernel = kernel_of(width, units, seed_idx)
    width.load_kernel(seed_idx, kernel)
    if awake:
        wake(kernel.module, seed_idx)
    for state in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING, SeedState.FOSSILIZED):
        width.advance(seed_idx, state)
        if state == to:
            break
    return kernel.module


def wake(kernel: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*kernel.named_parameters(), *kernel.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.3
                tensor.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """Outputs; the model's statistics stay as they are."""
    twin = {n: b.clone() for n, b in model.named_buffers()}
    found = [y.detach().clone() for y in tensors_in(model(x))]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(twin[name])
    return found


def far(ys: list[Tensor], zs: list[Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    assert [y.shape for y in ys] == [z.shape for z in zs]
    return max(
        float((y - z).detach().abs().max() / z.detach().abs().max().clamp_min(1e-30))
        for y, z in zip(ys, zs, strict=True)
    )


def exact(ys: list[Tensor], zs: list[Tensor]) -> bool:
    return all(torch.equal(y, z) for y, z in zip(ys, zs, strict=True))


Change = Callable[[KasminaWidth], Any]
