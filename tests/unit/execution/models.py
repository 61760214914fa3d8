"""Hosts of every sort, and seeds brought to the state that a test asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from esper.blueprints import fitting
from esper.contracts.seeds import LayerSpec, SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Kernel, Recipe
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import wrap
from esper.testing.blueprint_laws import awaken

# B batch, T time, F features, C channels

PATH = (
    SeedState.GERMINATED,
    SeedState.TRAINING,
    SeedState.BLENDING,
    SeedState.HOLDING,
    SeedState.FOSSILIZED,
)


class Residual(nn.Module):
    """A block with a skip, as in a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )

    @override
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.body(x_BCHW)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer block that calls its projections."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size, bias=False)
        self.norm = nn.LayerNorm(size)
        self.feed_forward = nn.Sequential(
            nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)
        )

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x_BTF)).unsqueeze(1).chunk(3, dim=-1)
        read = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BTF = x_BTF + self.out(read.squeeze(1))
        return x_BTF + self.feed_forward(x_BTF)  # type: ignore[no-any-return]


class Gated(nn.Module):
    """A host with further arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    @override
    def forward(self, hidden: Tensor, gain: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        y: Tensor = self.linear(hidden) * gain
        return y if shift is None else y + shift


class CallsByKeyword(nn.Module):
    """A model that gives its layer everything by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = Gated()

    @override
    def forward(self, x_BF: Tensor) -> Tensor:
        return self.gated(hidden=x_BF, gain=2.0, shift=x_BF)  # type: ignore[no-any-return]


class WritesIntoInput(nn.Module):
    """A host that changes its input in place, and has no attribute that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    @override
    def forward(self, x_BF: Tensor) -> Tensor:
        return self.linear(x_BF.mul_(0.5))  # type: ignore[no-any-return]


class Copies(nn.Module):
    """Gives its layer a copy, which that may write into."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(6, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.clone()))  # type: ignore[no-any-return]


class Checkpointed(nn.Module):
    """Two blocks under gradient checkpointing, with dropout between."""

    def __init__(self, *, reentrant: bool = False) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2))
        self.second = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    @override
    def forward(self, x_BF: Tensor) -> Tensor:
        for block in (self.first, self.second):
            x_BF = checkpoint(block, x_BF, use_reentrant=self.reentrant)
        return self.head(x_BF)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """A recurrent model: one layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    @override
    def forward(self, x_BF: Tensor) -> Tensor:
        return self.head(torch.tanh(self.step(torch.tanh(self.step(x_BF)))))  # type: ignore[no-any-return]


class Noisy(nn.Module):
    """A classifier with everything that a shadow pass could disturb: dropout and batch norm."""

    def __init__(self, features: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(8, 8)
        self.head = nn.Linear(8, classes)

    @override
    def forward(self, x_BF: Tensor) -> Tensor:
        h = self.drop(torch.relu(self.norm(self.fc1(x_BF))))
        return self.head(self.drop(torch.relu(self.fc2(h))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A model, the layer of it that is wrapped, and the shape that it reads."""

    name: str
    make: Callable[[], nn.Module]
    layer: str
    shape: tuple[int, ...]

    @override
    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def x(self, seed: int = 1) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))


def _encoder(**settings: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **settings)
    return nn.Sequential(nn.TransformerEncoder(layer, 2))


CASES = [
    Case("linear", lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), "0", (5, 6)),
    Case("linear-no-bias", lambda: nn.Sequential(nn.Linear(6, 4, bias=False)), "0", (5, 6)),
    Case("linear-3d", lambda: nn.Sequential(nn.Linear(6, 4)), "0", (5, 7, 6)),
    Case("conv1d", lambda: nn.Sequential(nn.Conv1d(3, 4, 5)), "0", (2, 3, 12)),
    Case("conv1d-same", lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding="same")), "0", (2, 3, 9)),
    Case("conv2d-strided", lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), "0", (2, 3, 9, 8)),
    Case(
        "conv2d-valid",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 5, padding="valid")),
        "0",
        (2, 3, 9, 9),
    ),
    Case(
        "conv2d-grouped",
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2)),
        "0",
        (2, 4, 6, 6),
    ),
    Case("batchnorm1d", lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), "1", (4, 6)),
    Case("batchnorm2d", lambda: nn.Sequential(nn.BatchNorm2d(3)), "0", (2, 3, 6, 6)),
    Case("layernorm", lambda: nn.Sequential(nn.LayerNorm(6)), "0", (5, 7, 6)),
    Case(
        "mlp-block",
        lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))),
        "0",
        (5, 6),
    ),
    Case("residual", lambda: nn.Sequential(Residual(3), nn.Flatten()), "0", (2, 3, 6, 6)),
    Case("feed-forward", lambda: Block(8), "feed_forward", (2, 5, 8)),
    Case("attention-output", lambda: Block(8), "out", (2, 5, 8)),
    Case("encoder-linear1", _encoder, "0.layers.0.linear1", (2, 5, 8)),
    Case("encoder-linear2", lambda: _encoder(norm_first=False), "0.layers.1.linear2", (2, 5, 8)),
    Case("encoder-layer", _encoder, "0.layers.1", (2, 5, 8)),
    Case("inplace", lambda: Copies(nn.ReLU(inplace=True)), "layer", (5, 6)),
    Case(
        "inplace-block",
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(inplace=True))),
        "1",
        (5, 6),
    ),
    Case("writes-into-input", lambda: Copies(WritesIntoInput()), "layer", (5, 6)),
    Case("keywords", CallsByKeyword, "gated", (5, 6)),
    Case("checkpointed", Checkpointed, "first.0", (5, 6)),
    Case("recurrent", Twice, "step", (5, 5)),
]


def losses(model: nn.Module, batch: Any) -> Tensor:
    """Per-example cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def squares(model: nn.Module, batch: Any) -> Tensor:
    """Per-example mean square of whatever the model gives."""
    return model(batch).square().flatten(1).mean(dim=1)  # type: ignore[no-any-return]


def batches(count: int, size: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Labels that depend on products of features: a linear model cannot have them all."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = torch.randn(size, 6, generator=generator)
        y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long()
        found.append((x, y))
    return found


def wrapped(model: nn.Module, name: str, seeds: int, batch: Any) -> KasminaLayer:
    """Wrap one layer and see its shapes."""
    wrap(model, [name], ["lowrank"] * seeds)
    layer = model.get_submodule(name)
    assert isinstance(layer, KasminaLayer)
    observe_shapes(model, {name: layer}, loss_fn=squares, batch=batch)
    return layer


def blueprint_for(spec: LayerSpec) -> str:
    """A blueprint with a nonlinearity, if one fits."""
    names = fitting(spec)
    return next((n for n in ("bottleneck", "conv_block", "se") if n in names), names[0])


def kernel(layer: KasminaLayer, *, name: str = "", seed: int = 0, awake: bool = True) -> Kernel:
    """A kernel for the layer; awake: as if it had learnt, so that its output is not zero."""
    assert layer.spec is not None
    recipe = Recipe(
        blueprint=name or blueprint_for(layer.spec), spec=layer.spec, budget=400, seed=seed
    )
    module = awaken(recipe.build(), seed=seed + 1) if awake else recipe.build()
    return Kernel(module=module, kernel_id=f"k{seed}", recipe=recipe)


def grow(layer: KasminaLayer, seed_idx: int, state: SeedState, **settings: Any) -> None:
    """Load a kernel and take it along the path to this state; alpha is 0.25 while it blends."""
    layer.load_kernel(seed_idx, kernel(layer, **settings))
    for step in PATH[1:]:
        if layer.seed_states[seed_idx] is state:
            return
        layer.advance(seed_idx, step)
        if step is SeedState.BLENDING:
            layer.set_alpha(seed_idx, 0.25)
