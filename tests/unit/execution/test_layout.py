"""Axes of a layer: what its kernels may mix, and what they must not."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper import blueprints
from esper.contracts.errors import ConfigError, KernelError
from esper.contracts.seeds import SeedState
from esper.execution.kernel import Kernel, Recipe
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, wrap
from esper.testing.blueprint_laws import awaken
from tests.unit.execution.models import squares

# --- axes -----------------------------------------------------------------------------------------


class Through(nn.Module):
    """Calls a layer on its input with the axes in another order; the mean over all but examples."""

    def __init__(self, layer: nn.Module, *order: int) -> None:
        super().__init__()
        self.layer = layer
        self.order = order

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.permute(self.order) if self.order else x)
        batch = self.order.index(0) if self.order else 0
        return y.transpose(0, batch).flatten(1)  # type: ignore[no-any-return]


class Inside(nn.Module):
    """Residual block on (B, T, F) or (T, B, F) whose convolution is over time."""

    def __init__(self, features: int, *order: int, causal: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.conv = nn.Conv1d(features, features, 3, padding=0 if causal else 1)
        self.order = order
        self.causal = causal

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x).permute(self.order)
        hidden = self.conv(F.pad(hidden, (2, 0)) if self.causal else hidden)
        back = sorted(range(3), key=self.order.__getitem__)
        return x + hidden.permute(back)  # type: ignore[no-any-return]


class CausalBlock(nn.Module):
    """Residual block on (B, C, L) that reads the past alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3)

    @override
    def forward(self, x_BCL: Tensor) -> Tensor:
        return x_BCL + self.conv(F.pad(x_BCL, (2, 0)))  # type: ignore[no-any-return]


class LastNorm2d(nn.LayerNorm):
    """A LayerNorm of the channels of a picture, as in timm."""

    @override
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """ConvNeXt's block, on (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mlp = nn.Linear(channels, channels)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Merging(nn.Module):
    """Swin's patch merging, (B, H, W, C) to half of the extents."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(2 * channels, 2 * channels)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(torch.cat([x[:, ::2, ::2], x[:, 1::2, 1::2]], -1))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """Mixes a fixed number of positions, so that it takes no other extent at either axis."""

    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.time = nn.Linear(length, length)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF + self.time(self.norm(x_BTF).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


@dataclass
class Host:
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kind: str
    axes: str
    size: int
    kinds: tuple[str, ...] = ()
    causal: bool = False


HOSTS = {
    "linear TBF": Host(lambda: Through(nn.Linear(4, 3), 1, 0, 2), (5, 6, 4), "sequence", "TBF", 4),
    "linear BTF": Host(lambda: Through(nn.Linear(4, 3)), (5, 6, 4), "sequence", "BTF", 4),
    "linear BHWC": Host(lambda: Through(nn.Linear(4, 3)), (5, 6, 7, 4), "features", "BHWC", 4),
    "linear of 5": Host(lambda: Through(nn.Linear(4, 3)), (5, 2, 3, 2, 4), "features", "BNNNF", 4),
    "square": Host(lambda: Through(nn.Linear(5, 5), 1, 0, 2), (5, 5, 5), "sequence", "TBF", 5),
    "encoder TBF": Host(
        lambda: Through(nn.TransformerEncoderLayer(4, 2, 8), 1, 0, 2),
        (5, 6, 4),
        "sequence",
        "TBF",
        4,
    ),
    "conv inside BTF": Host(
        lambda: Through(Inside(4, 0, 2, 1)), (5, 6, 4), "sequence", "BLF", 4, ("sequence", "conv1d")
    ),
    "conv inside square": Host(
        lambda: Through(Inside(4, 0, 2, 1)), (4, 4, 4), "sequence", "BLF", 4, ("sequence", "conv1d")
    ),
    "conv inside TBF": Host(
        lambda: Through(Inside(4, 1, 2, 0), 1, 0, 2),
        (5, 6, 4),
        "sequence",
        "LBF",
        4,
        ("sequence", "conv1d"),
    ),
    "causal conv inside": Host(
        lambda: Through(Inside(4, 0, 2, 1, causal=True)), (5, 6, 4), "sequence", "BTF", 4
    ),
    "causal BCL": Host(lambda: Through(CausalBlock(4)), (5, 4, 6), "conv1d", "BCL", 4, causal=True),
    "batch norm": Host(lambda: Through(nn.BatchNorm1d(4)), (5, 4, 6), "conv1d", "BCL", 4),
    "group norm": Host(lambda: Through(nn.GroupNorm(2, 4)), (5, 4, 6, 7), "conv2d", "BCHW", 4),
    "norm of a subclass": Host(lambda: Through(LastNorm2d(4)), (5, 4, 6, 7), "conv2d", "BCHW", 4),
    "next": Host(
        lambda: Through(NextBlock(4)), (5, 6, 7, 4), "features", "BHWC", 4, ("features", "conv2d")
    ),
    "merging": Host(lambda: Through(Merging(4)), (5, 6, 8, 4), "conv2d", "BHWC", 4),
    "mixer": Host(
        lambda: Through(Mixer(6, 4)), (5, 6, 4), "sequence", "BLF", 4, ("sequence", "conv1d")
    ),
    "activation behind linear": Host(
        lambda: nn.Sequential(nn.Linear(4, 3), Through(nn.ReLU())), (5, 6, 4), "sequence", "BTF", 3
    ),
    "activation behind conv": Host(
        lambda: nn.Sequential(nn.Conv1d(4, 3, 1), Through(nn.ReLU())), (5, 4, 6), "conv1d", "BCL", 3
    ),
    "pooling": Host(lambda: Through(nn.MaxPool2d(2)), (5, 4, 6, 8), "conv2d", "BCHW", 4),
    "conv3d": Host(
        lambda: Through(nn.Conv3d(4, 3, 3, padding=1)), (5, 4, 3, 4, 5), "features", "BCNNN", 4
    ),
}


def layer_name(model: nn.Module) -> str:
    names: list[str] = [name for name, _ in model.named_modules()]
    return min((name for name in names if name.split(".")[-1] == "layer"), key=len)


@pytest.mark.parametrize("host", HOSTS.values(), ids=list(HOSTS))
def test_what_a_layer_s_axes_are(host: Host) -> None:
    torch.manual_seed(0)
    model = host.model()
    name = layer_name(model)
    wrap(model, [name], ["scale"])
    x = torch.randn(host.shape)
    (spec,) = observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=x).values()
    assert (spec.kind, spec.axes, spec.in_size) == (host.kind, host.axes, host.size)
    assert spec.kinds == (host.kinds or (host.kind,))
    assert spec.causal is host.causal


@pytest.mark.parametrize("host", HOSTS.values(), ids=list(HOSTS))
def test_no_kernel_of_any_layout_mixes_examples(host: Host) -> None:
    torch.manual_seed(0)
    model = host.model().eval()
    name = layer_name(model)
    wrap(model, [name], ["scale"])
    x = torch.randn(host.shape)
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=x).values()
    names = blueprints.fitting(spec)
    assert names
    for blueprint in names:
        recipe = Recipe(blueprint=blueprint, spec=spec, budget=2000, seed=0)
        kernel = Kernel(module=awaken(recipe.build()), kernel_id=blueprint, recipe=recipe)
        layers[name].load_kernel(0, kernel)
        changed = x.clone()
        changed[1] += 10
        with torch.no_grad(), layers[name].showing(0, on=True):
            moved = (model(x) != model(changed)).flatten(1).any(dim=1)
        assert moved.tolist() == [index == 1 for index in range(len(x))], blueprint
        layers[name].unload(0)
        layers[name].advance(0, SeedState.DORMANT)


@pytest.mark.parametrize("length", [1, 3, 19])
@pytest.mark.parametrize("order", [(), (1, 0, 2)])
def test_a_kernel_of_one_length_works_at_others(length: int, order: tuple[int, ...]) -> None:
    model = wrap(Through(nn.Linear(4, 4), *order), ["layer"], ["scale"])
    layers = kasmina_layers(model)
    x = torch.randn(3, 16, 4)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=x).values()
    for blueprint in blueprints.fitting(spec):
        kernel = blueprints.build(blueprint, spec, budget=500, seed=0)
        shape = (2, length, 4) if not order else (length, 2, 4)
        assert kernel(torch.randn(shape)).shape == shape


# --- batches of every sort ------------------------------------------------------------------------


def tokens_first(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch["x"], batch["y"]  # (T, B, F), (T, B)
    return (model(x.transpose(0, 1)).sum(1) - y.sum(0)).square()  # type: ignore[no-any-return]


def of_attributes(model: nn.Module, batch: Any) -> Tensor:
    return squares(model, batch.x)


def of_examples(model: nn.Module, batch: Any) -> Tensor:
    return squares(model, torch.stack([example["x"] for example in batch]))


def of_names(model: nn.Module, batch: Any) -> Tensor:
    x, names = batch
    assert len(names) == len(x)
    return squares(model, x)


def that_pops(model: nn.Module, batch: Any) -> Tensor:
    return squares(model, batch.pop("x"))


BATCHES: list[tuple[Any, Callable[..., Tensor]]] = [
    ({"x": torch.ones(5, 5, 4), "y": torch.ones(5, 5)}, tokens_first),
    ({"x": torch.ones(6, 5, 4), "y": torch.ones(6, 5)}, tokens_first),
    (SimpleNamespace(x=torch.ones(5, 6, 4)), of_attributes),
    ([{"x": torch.ones(6, 4)} for _ in range(5)], of_examples),
    ((torch.ones(2, 6, 4), ["a", "b"]), of_names),
    ((torch.ones(1, 6, 4), ["a"]), of_names),
    ({"x": torch.ones(5, 6, 4)}, that_pops),
]


@pytest.mark.parametrize(("batch", "loss_fn"), BATCHES)
def test_one_example_fewer_in_batches_of_every_sort(
    batch: Any, loss_fn: Callable[..., Tensor]
) -> None:
    model = wrap(Through(nn.Linear(4, 3), 1, 0, 2), ["layer"], ["scale"])
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=loss_fn, batch=batch).values()
    assert spec.axes == "TBF"


# --- what cannot be told --------------------------------------------------------------------------


class Prompted(nn.Module):
    """A layer that reads no examples, but a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(2, 6, 4))
        self.layer = nn.Linear(4, 4)

    @override
    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF + self.layer(self.prompt).mean((0, 1))  # type: ignore[no-any-return]


def test_without_an_axis_of_examples_kernels_work_position_by_position() -> None:
    model = wrap(Prompted(), ["layer"], ["attention", "lowrank"])
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=torch.randn(3, 4)).values()
    assert (spec.kind, spec.axes) == ("features", "NNF")
    assert set(blueprints.fitting(spec)) == {"lowrank", "bottleneck", "glu", "gate", "scale"}
    with pytest.raises(KernelError, match=r"no axis of its own has the examples.*layout=\{'layer'"):
        blueprints.build("attention", spec, budget=500, seed=0)


def test_a_batch_that_cannot_be_made_smaller() -> None:
    data = torch.randn(5, 6, 4)

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        del batch
        return squares(model, data)

    for layer, axes in (
        (nn.Linear(4, 4), "NNF"),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), "BTF"),
        (nn.Conv1d(6, 6, 3, padding=1), "BCL"),
        (nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU()), "BCL"),
    ):
        model = wrap(Through(layer), ["layer"], ["scale"])
        layers = kasmina_layers(model)
        (spec,) = observe_shapes(model, layers, loss_fn=loss_fn, batch=object()).values()
        assert spec.axes == axes


def test_an_axis_of_features_that_nothing_tells() -> None:
    model = wrap(Through(nn.Tanh()), ["layer"], ["scale"])
    with pytest.raises(KernelError, match=r"shape \(5, 6, 4\), has the features cannot be told"):
        observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=torch.ones(5, 6, 4))
    model = wrap(Through(nn.Tanh()), ["layer"], ["scale"], layout={"layer": "bcl"})
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=torch.ones(5, 6, 4)).values()
    assert (spec.kind, spec.in_size) == ("conv1d", 6)


# --- what the user says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("TBX", "is 'TBX'; it must have each of its letters once"),
        ("TBB", "is 'TBB'; it must have each of its letters once"),
        ("", "is ''; it must have each of its letters once"),
        ("TF", "is 'TF'; it must have a B for the batch and one F or C"),
        ("BT", "is 'BT'; it must have a B for the batch and one F or C"),
        ("BCF", "is 'BCF'; it must have a B for the batch and one F or C"),
    ],
)
def test_a_layout_that_means_nothing(layout: str, message: str) -> None:
    model = Through(nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=message):
        wrap(model, ["layer"], ["scale"], layout={"layer": layout})
    assert isinstance(model.layer, nn.Linear)
    with pytest.raises(ConfigError, match="unknown layer in layout 'lyer'"):
        wrap(model, ["layer"], ["scale"], layout={"lyer": "BTF"})


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("BF", r"is 'BF', but its input has shape \(6, 5, 4\); give 3 letters"),
        ("BTF", r"but axis 1 has the examples: .* its input is \(6, 4, 4\) and not \(6, 5, 4\)"),
        ("FBT", r"but axis 2 of its input, shape \(6, 5, 4\), has the features"),
    ],
)
def test_a_layout_that_is_not_what_was_observed(layout: str, message: str) -> None:
    model = wrap(Through(nn.Linear(4, 3), 1, 0, 2), ["layer"], ["scale"], layout={"layer": layout})
    with pytest.raises(ConfigError, match=message):
        observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=torch.ones(5, 6, 4))


@pytest.mark.parametrize(
    ("shape", "layout", "kinds", "causal"),
    [
        ((5, 6, 4), "BTF", ("sequence",), False),
        ((5, 6, 4), "BLF", ("sequence", "conv1d"), False),
        ((5, 6, 7, 4), "BHWC", ("features", "conv2d"), False),
        ((5, 6, 7, 4), "BTHF", ("features",), False),
    ],
)
def test_letters_say_what_kernels_may_mix(
    shape: tuple[int, ...], layout: str, kinds: tuple[str, ...], *, causal: bool
) -> None:
    model = wrap(Through(nn.Linear(4, 3)), ["layer"], ["scale"], layout={"layer": layout})
    x = torch.ones(shape)
    (spec,) = observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=x).values()
    assert (spec.kinds, spec.causal) == (kinds, causal)


def test_channels_in_time_read_the_past_alone() -> None:
    model = wrap(Through(nn.Conv1d(4, 4, 1)), ["layer"], ["scale"], layout={"layer": "BCT"})
    x = torch.randn(5, 4, 6)
    (spec,) = observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=x).values()
    assert spec.causal
    assert "se" not in blueprints.fitting(spec)
    changed = x.clone()
    changed[..., 3:] += 1
    for name in ("conv_block", "depthwise", "conv_bottleneck"):
        kernel = awaken(blueprints.build(name, spec, budget=500, seed=0))
        assert torch.equal(kernel(x)[..., :3], kernel(changed)[..., :3])
