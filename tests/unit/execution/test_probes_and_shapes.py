"""What probes read, against autograd and numbers by hand; what the shapes of a layer tell."""

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints import BLUEPRINTS
from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec, SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.passes.probes import Reading, Readings, probe, promises
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, wrap
from tests.unit.execution.models import CASES, Case, Noisy, batches, grow, losses, squares, wrapped


def fixed() -> nn.Module:
    """y = [x0, -x1] and loss 3 y0 + y1, so that everything can be worked out by hand."""
    layer, head = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        head.weight.copy_(torch.tensor([[3.0, 1.0]]))
    return nn.Sequential(layer, head)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_reading_by_hand(*, frozen: bool) -> None:
    model = wrap(fixed(), ["0"], ["lowrank"]).requires_grad_(not frozen)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    reading = probe(model, kasmina_layers(model), loss_fn=lambda m, b: m(b).squeeze(1), batch=x)[
        "0"
    ]
    assert reading.gradient_rms == pytest.approx(10**0.5)  # of each example: (3, 1)
    assert reading.input_rms == pytest.approx(((1 + 4 + 9 + 16) / 2) ** 0.5)
    values = torch.tensor([1.0, -2.0, 3.0, -4.0])
    assert reading.activation_mean == pytest.approx(-0.5)
    assert reading.activation_sd == pytest.approx(float(values.std(unbiased=False)))
    assert reading.dead_fraction == 0.5  # the second unit is never positive


@pytest.mark.parametrize("frozen", [False, True])
def test_promises_of_kernels_by_hand(*, frozen: bool) -> None:
    """Gradient (3, 1) at both outputs, inputs that add up to (4, 6): one rank of norm sqrt(520)."""
    kinds = ["lowrank", "lora", "scale", "bias", "bottleneck", "conv_block"]
    model = wrap(fixed(), ["0"], kinds).requires_grad_(not frozen)
    layers, x = kasmina_layers(model), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    given: dict[str, Any] = {"loss_fn": lambda m, b: m(b).squeeze(1)}
    assert not promises(model, layers, batches=[x], **given)  # its shapes are not known yet
    observe_shapes(model, layers, batch=x, **given)
    for batches_ in ([x], [x[:1], x[1:]]):
        found = promises(model, layers, batches=batches_, **given)["0"]
        assert found.keys() == set(kinds) - {"conv_block"}  # which does not fit
        assert found["lowrank"] == pytest.approx((520**0.5, 0.0), abs=1e-4)
        assert found["lora"] == found["lowrank"]
        # Gradient of the offset (6, 2), of the gain the diagonal (12, 6) of the linear map's.
        assert found["bias"] == pytest.approx((40**0.5,))
        assert found["scale"] == pytest.approx(((40 + 12**2 + 6**2) ** 0.5,))
        one, two = found["bottleneck"]
        assert two == pytest.approx(one * (2**0.5 - 1))
        assert 0 < one < 520**0.5


def test_a_causal_mixer_promises_what_autograd_finds() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        @override
        def forward(self, x: Tensor) -> Tensor:
            return cast("Tensor", self.fc(x)).square().sum((1, 2))

    model, x = Steps(), torch.randn(4, 5, 3)
    wrap(model, ["fc"], ["causal_mixer"], layout={"fc": "BTF"})
    layers, given = kasmina_layers(model), {"loss_fn": lambda m, b: m(b)}
    observe_shapes(model, layers, batch=x, **given)
    ((found, *_),) = promises(model, layers, batches=[x], **given)["fc"].values()
    recipe, spec = BLUEPRINTS.create("causal_mixer"), layers["fc"].spec
    assert spec is not None
    kernel = recipe.build(spec, budget=recipe.count(spec, 1), seed=0)
    (layers["fc"].host(x) + kernel(x)).square().sum().backward()
    squares_ = [p.grad.square().sum() for p in kernel.parameters() if p.grad is not None]
    assert found == pytest.approx(float(sum(squares_)) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("state", [None, SeedState.BLENDING])
def test_every_host_can_be_probed(case: Case, state: SeedState | None) -> None:
    model = case.model()
    layer = wrapped(model, case.layer, 1, case.x())
    if state is not None:
        grow(layer, 0, state)
    before = copy.deepcopy(model.state_dict())
    (reading,) = probe(model, {case.layer: layer}, loss_fn=squares, batch=case.x()).values()
    assert reading.gradient_rms > 0
    assert reading.input_rms > 0
    assert 0 <= reading.dead_fraction <= 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_that_the_loss_does_not_see_have_no_reading() -> None:
    model = wrap(Noisy(), ["fc1", "head"], ["lowrank"])
    layers, batch = kasmina_layers(model), batches(1)[0]
    found = probe(
        model, layers, loss_fn=lambda m, b: squares(m.get_submodule("fc1"), b[0]), batch=batch
    )
    assert list(found) == ["fc1"]
    assert probe(model, layers, loss_fn=lambda _, b: b[0].sum(dim=1), batch=batch) == {}
    with pytest.raises(KernelError, match="gave losses without gradients, so no kernel can learn"):
        probe(model, layers, loss_fn=lambda m, b: losses(m, b).detach(), batch=batch)


def test_readings_are_averaged_and_taken_once() -> None:
    readings = Readings()
    assert not readings
    for value in (1.0, 3.0):
        names = dict.fromkeys(Reading.__slots__, value)
        readings.add({"fc1": Reading(**names)})
    assert readings
    assert readings.take() == {"fc1": dict.fromkeys(Reading.__slots__, 2.0)}
    assert readings.take() == {}


# --- shapes ---------------------------------------------------------------------------------------

SPECS = {
    "linear": LayerSpec(kind="features", in_size=6, out_size=4, layer_type="Linear"),
    "linear-3d": LayerSpec(kind="sequence", in_size=6, out_size=4, layer_type="Linear"),
    "conv1d": LayerSpec(
        kind="conv1d",
        in_size=3,
        out_size=4,
        in_extent=(12,),
        out_extent=(8,),
        layer_type="Conv1d",
        kernel_size=(5,),
        stride=(1,),
        padding=(0,),
        dilation=(1,),
    ),
    "conv1d-same": LayerSpec(
        kind="conv1d",
        in_size=3,
        out_size=4,
        in_extent=(9,),
        out_extent=(9,),
        layer_type="Conv1d",
        kernel_size=(3,),
        stride=(1,),
        padding=(1,),
        dilation=(1,),
    ),
    "conv2d-strided": LayerSpec(
        kind="conv2d",
        in_size=3,
        out_size=4,
        in_extent=(9, 8),
        out_extent=(5, 4),
        layer_type="Conv2d",
        kernel_size=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        dilation=(1, 1),
    ),
    "conv2d-valid": LayerSpec(
        kind="conv2d",
        in_size=3,
        out_size=4,
        in_extent=(9, 9),
        out_extent=(5, 5),
        layer_type="Conv2d",
        kernel_size=(5, 5),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
    ),
    "batchnorm1d": LayerSpec(kind="features", in_size=5, out_size=5, layer_type="BatchNorm1d"),
    "layernorm": LayerSpec(kind="sequence", in_size=6, out_size=6, layer_type="LayerNorm"),
    "residual": LayerSpec(
        kind="conv2d",
        in_size=3,
        out_size=3,
        in_extent=(6, 6),
        out_extent=(6, 6),
        layer_type="Residual",
    ),
    "feed-forward": LayerSpec(kind="sequence", in_size=8, out_size=8, layer_type="Sequential"),
    "keywords": LayerSpec(kind="features", in_size=6, out_size=6, layer_type="Gated"),
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SPECS], ids=str)
def test_what_the_shapes_tell(case: Case) -> None:
    model = wrap(case.model(), [case.layer], ["lowrank"])
    layer = model.get_submodule(case.layer)
    assert isinstance(layer, KasminaLayer)
    assert layer.spec is None
    found = observe_shapes(model, {case.layer: layer}, loss_fn=squares, batch=case.x())
    assert found == {case.layer: SPECS[case.name]}
    assert layer.spec == SPECS[case.name]


class Partial(nn.Module):
    """Calls two of its layers, one of which gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.picture = nn.Conv2d(1, 1, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.recurrent(self.used(x).unsqueeze(1))
        if x.shape[0] == 13:
            raise ValueError("thirteen")
        return self.picture(y.unsqueeze(1)).flatten(1)  # type: ignore[no-any-return]


OTHER: list[tuple[str, int, Callable[..., Any], str]] = [
    ("unused", 4, squares, "layer 'unused' is never called in forward"),
    ("recurrent", 4, squares, "layer 'recurrent' maps Tensor to tuple"),
    ("used", 13, squares, r"Tensor of \(13, 6\): thirteen. Nothing was changed"),
    ("used", 4, lambda m, b: m(b[:, :5]), "fails on a batch"),
    ("used", 4, lambda m, b: m(b, b), "fails on a batch"),
    ("used", 4, lambda m, b: b["x"], "fails on a batch"),
    ("used", 4, lambda m, b: m.missing(b), "fails on a batch"),
]


@pytest.mark.parametrize(("name", "size", "loss_fn", "message"), OTHER)
def test_what_cannot_be_observed_leaves_the_model_untouched(
    name: str, size: int, loss_fn: Callable[..., Any], message: str
) -> None:
    torch.manual_seed(0)
    model = wrap(Partial(), ["picture", name], ["lowrank"]).train()
    layers = kasmina_layers(model)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(KernelError, match=message):
        observe_shapes(
            model, layers, loss_fn=loss_fn, batch=torch.randn(size, 6, generator=torch.Generator())
        )
    assert all(layer.spec is None for layer in layers.values())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("host", "shape"),
    [
        (nn.Unflatten(1, (2, 3)), (2, 6)),
        (nn.AvgPool3d(2), (2, 4, 4, 4, 4)),
        (nn.Conv2d(2, 2, 1), (2, 4, 4)),
    ],
    ids=str,
)
def test_shapes_that_no_kernel_has(host: nn.Module, shape: tuple[int, ...]) -> None:
    model = wrap(nn.Sequential(host), ["0"], ["lowrank"])
    layers, x = kasmina_layers(model), torch.randn(shape)
    with pytest.raises(KernelError, match=r"layer '0' maps \(.*kernels exist for \(B, F\)"):
        observe_shapes(model, layers, loss_fn=lambda m, b: m(b).flatten(1).sum(1), batch=x)
