"""Axes of a layer in batches of every sort, where nothing tells them, and by the user's word."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from esper import blueprints
from esper.contracts.errors import ConfigError, KernelError
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, wrap
from esper.testing.blueprint_laws import awaken
from tests.unit.execution.layout_models import (
    Inside,
    Through,
)
from tests.unit.execution.models import squares

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
    vector = {"lowrank", "lora", "bottleneck", "glu", "gate", "bias", "scale"}
    assert set(blueprints.fitting(spec)) == vector
    with pytest.raises(KernelError, match=r"no axis of its own has the examples.*layout=\{'layer'"):
        blueprints.build("attention", spec, budget=500, seed=0)


class Whole:
    """A batch that cannot be taken apart."""

    __slots__ = ("data",)

    def __init__(self, data: Tensor) -> None:
        self.data = data


def of_whole(model: nn.Module, batch: Whole) -> Tensor:
    return squares(model, batch.data)


WHOLE: list[tuple[nn.Module, tuple[int, ...], str]] = [
    (nn.Linear(4, 4), (), "BTF"),
    (nn.Linear(4, 4), (1, 0, 2), "TBF"),
    (nn.TransformerEncoderLayer(4, 2, 8), (1, 0, 2), "TBF"),
    (nn.Conv1d(6, 6, 3, padding=1), (), "BCL"),
    (nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU()), (), "BCL"),
]


@pytest.mark.parametrize(("layer", "order", "axes"), WHOLE)
def test_a_batch_that_cannot_be_made_smaller(
    layer: nn.Module, order: tuple[int, ...], axes: str
) -> None:
    torch.manual_seed(0)
    model = wrap(Through(layer, *order), ["layer"], ["scale"])
    layers, batch = kasmina_layers(model), Whole(torch.randn(5, 6, 4))
    (spec,) = observe_shapes(model, layers, loss_fn=of_whole, batch=batch).values()
    assert spec.axes == axes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_batch_that_tells_nothing() -> None:
    def detached(model: nn.Module, batch: Whole) -> Tensor:
        return of_whole(model, batch).detach()

    for layer, axes in (
        (nn.Linear(4, 4), "NNF"),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), "BTF"),
        (nn.Conv1d(6, 6, 3, padding=1), "BCL"),
        (nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU()), "BCL"),
    ):
        model = wrap(Through(layer), ["layer"], ["scale"])
        layers, batch = kasmina_layers(model), Whole(torch.randn(5, 6, 4))
        (spec,) = observe_shapes(model, layers, loss_fn=detached, batch=batch).values()
        assert spec.axes == axes


def test_an_axis_of_features_that_nothing_tells() -> None:
    model = wrap(Through(nn.Tanh()), ["layer"], ["scale"])
    with pytest.raises(KernelError, match=r"shape \(5, 6, 4\), has the features cannot be told"):
        observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=torch.ones(5, 6, 4))
    model = wrap(Through(nn.Tanh()), ["layer"], ["scale"], layout={"layer": "bcl"})
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=torch.ones(5, 6, 4)).values()
    assert (spec.kind, spec.in_size) == ("conv1d", 6)


class StrictError(Exception):
    """An error that is no error of Python's or PyTorch's."""


class OnlyEven(nn.Module):
    """Raises an error of its own where the number of positions is odd."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise StrictError
        return x * torch.ones(4)


def test_errors_of_any_sort_in_trials_are_answers() -> None:
    def of_five(model: nn.Module, batch: Tensor) -> Tensor:
        if len(batch) != 5 or torch.is_grad_enabled():
            raise StrictError
        return squares(model, batch)

    model = wrap(Through(OnlyEven()), ["layer"], ["scale"])
    layers = kasmina_layers(model)
    (spec,) = observe_shapes(model, layers, loss_fn=squares, batch=torch.ones(5, 6, 4)).values()
    assert spec.axes == "BTF"
    (spec,) = observe_shapes(model, layers, loss_fn=of_five, batch=torch.ones(5, 6, 4)).values()
    assert spec.axes == "NNF"


def test_default_seeds_are_those_of_the_kind_that_was_observed() -> None:
    hosts: list[tuple[nn.Module, tuple[int, ...], str]] = [
        (Inside(4, 0, 2, 1, causal=True), (5, 6, 4), "bottleneck"),
        (nn.BatchNorm2d(4), (5, 4, 6, 7), "conv_bottleneck"),
        (nn.Conv3d(4, 4, 3, padding=1), (5, 4, 3, 4, 5), "bottleneck"),
    ]
    for host, shape, first in hosts:
        model = wrap(Through(host), ["layer"], seeds_per_layer=2)
        layers = kasmina_layers(model)
        observe_shapes(model, layers, loss_fn=squares, batch=torch.ones(shape))
        assert layers["layer"].seed_blueprints[0] == first
    model = wrap(Through(nn.BatchNorm2d(4)), ["layer"], ["glu"])  # what the user chose stays
    observe_shapes(model, kasmina_layers(model), loss_fn=squares, batch=torch.ones(5, 4, 6, 7))
    assert kasmina_layers(model)["layer"].seed_blueprints == ("glu",)


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
