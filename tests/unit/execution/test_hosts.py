"""Every sort of host: dormant and isolated seeds do not show, blended ones are added exactly."""

import copy

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.contracts.errors import KernelError
from esper.contracts.seeds import SeedState
from esper.execution.harden import harden
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Kernel
from esper.execution.passes.isolation import shadow_step
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import unwrap, wrap
from tests.pairwise import every_pair
from tests.unit.execution.models import CASES, Case, Copies, Gated, grow, kernel, squares, wrapped

every_host = pytest.mark.parametrize("case", CASES, ids=str)
HIDDEN = (SeedState.DORMANT, SeedState.GERMINATED, SeedState.TRAINING)
SHOWN = (SeedState.BLENDING, SeedState.HOLDING, SeedState.FOSSILIZED)


def run(model: nn.Module, x: Tensor, *, training: bool, grad: bool = True) -> Tensor:
    torch.manual_seed(3)
    model.train(training)
    with torch.set_grad_enabled(grad):
        y: Tensor = model(x)
    return y


@pytest.mark.parametrize(
    ("case", "training", "grad"), every_pair(CASES, [True, False], [True, False]), ids=str
)
def test_hidden_seeds_leave_the_output_bit_for_bit(
    case: Case, *, training: bool, grad: bool
) -> None:
    plain, model = case.model(), case.model()
    layer = wrapped(model, case.layer, 3, case.x())
    for seed_idx, state in enumerate(HIDDEN):
        if state is not SeedState.DORMANT:
            grow(layer, seed_idx, state)
    assert layer.seed_states == HIDDEN
    assert not layer.is_grown
    expected = run(plain, case.x(), training=training, grad=grad)
    found = run(model, case.x(), training=training, grad=grad)
    assert torch.equal(expected, found)
    assert (expected.dtype, expected.device) == (found.dtype, found.device)


@every_host
@pytest.mark.parametrize("training", [True, False])
def test_hidden_seeds_leave_the_gradients_bit_for_bit(case: Case, *, training: bool) -> None:
    plain, model = case.model(), case.model()
    grow(wrapped(model, case.layer, 2, case.x()), 0, SeedState.TRAINING)
    for each in (plain, model):
        torch.autograd.backward(run(each, case.x(), training=training).square().sum())
    theirs = dict(unwrap(model).named_parameters())
    for name, parameter in plain.named_parameters():
        gradient = theirs[name].grad
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("case", "state", "training"), every_pair(CASES, SHOWN, [True, False]), ids=str
)
def test_shown_seeds_are_added_with_their_alpha(
    case: Case, state: SeedState, *, training: bool
) -> None:
    """The layer gives host(x) + alpha * kernel(x), x being what the host was given."""
    model = case.model()
    layer = wrapped(model, case.layer, 2, case.x())
    grow(layer, 0, state)
    (part,) = layer.contributions()
    alpha = 0.25 if state is SeedState.BLENDING else 1.0
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def before(layer: KasminaLayer, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = layer.input_of(args, kwargs).clone()
        torch_state = torch.get_rng_state()
        host = copy.deepcopy(layer.host)(*[a.clone() for a in args], **kwargs)
        torch.set_rng_state(torch_state)
        seen.append((x, host, torch.empty(0)))

    def after(layer: nn.Module, args: object, kwargs: object, y: Tensor) -> None:
        seen[-1] = (*seen[-1][:2], y)

    layer.register_forward_pre_hook(before, with_kwargs=True)
    layer.register_forward_hook(after, with_kwargs=True)
    run(model, case.x(), training=training, grad=False)
    assert seen
    for x, host, y in seen:
        added = alpha * part.kernel(x)
        assert added.abs().max() > 0
        assert torch.equal(y, host + added)


@every_host
def test_active_seed_shows_in_evaluation_without_gradients(case: Case) -> None:
    """PyTorch's fused evaluation paths must not pass the kernel by."""
    model = case.model()
    layer = wrapped(model, case.layer, 2, case.x())
    before = run(model, case.x(), training=False, grad=False)
    grow(layer, 0, SeedState.HOLDING)
    without = run(model, case.x(), training=False, grad=False)
    assert not torch.equal(before, without)
    with_grad = run(model, case.x(), training=False)
    assert torch.allclose(without, with_grad, atol=1e-6)
    layer.unload(0)
    assert torch.equal(before, run(model, case.x(), training=False, grad=False))


@every_host
def test_every_host_has_a_seed_that_learns_in_the_shadow(case: Case) -> None:
    model = case.model().train()
    layer = wrapped(model, case.layer, 1, case.x())
    layer.load_kernel(0, kernel(layer, awake=False))
    module = layer.seed(0).as_kernel().module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(2):
        shadow_step(model, layer, 0, loss_fn=squares, batch=case.x(), optimizer=optimizer)
    assert any(bool((p != 0).any()) for p in list(module.parameters())[-1:])


# --- precision ------------------------------------------------------------------------------------

MODEST = [case for case in CASES if case.name in ("linear", "conv2d-strided", "layernorm")]


@pytest.mark.parametrize("case", MODEST, ids=str)
@pytest.mark.parametrize("state", [SeedState.TRAINING, SeedState.BLENDING, SeedState.FOSSILIZED])
def test_autocast(case: Case, state: SeedState) -> None:
    plain, model = case.model(), case.model()
    layer = wrapped(model, case.layer, 2, case.x())
    grow(layer, 0, state)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(case.x()), model(case.x())
        host, grown = layer.host(case.x()), layer(case.x())
    assert found.dtype == expected.dtype
    assert grown.dtype == host.dtype
    assert torch.equal(expected, found) is (state is SeedState.TRAINING)
    torch.autograd.backward(found.float().sum())


@pytest.mark.parametrize("case", MODEST, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("when", ["before wrapping", "before loading", "after blending"])
def test_other_precisions(case: Case, dtype: torch.dtype, when: str) -> None:
    model = case.model()
    if when == "before wrapping":
        model.to(dtype)
        layer = wrapped(model, case.layer, 2, case.x().to(dtype))
    else:
        layer = wrapped(model, case.layer, 2, case.x())
    if when == "before loading":
        model.to(dtype)
    grow(layer, 0, SeedState.BLENDING)
    if when == "after blending":
        model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(case.x().to(dtype)).dtype == dtype
    assert torch.equal(harden(model)(case.x().to(dtype)), model(case.x().to(dtype)))


def test_kernel_goes_where_the_model_is_if_the_host_has_no_parameters() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU()).double()
    layer = wrapped(model, "1", 1, torch.randn(2, 6, dtype=torch.float64))
    grow(layer, 0, SeedState.HOLDING)
    assert model(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64


# --- arguments, attributes, in-place hosts --------------------------------------------------------


def test_further_arguments_go_to_the_host() -> None:
    host = Gated()
    layer = KasminaLayer(host, name="gated", seeds=[""])
    x, shift = torch.randn(2, 6), torch.randn(2, 6)
    assert torch.equal(layer(x, 3.0, shift=shift), host(x, 3.0, shift=shift))
    module = nn.Linear(6, 6)
    layer.load_kernel(0, module)
    for state in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING):
        layer.advance(0, state)
    expected, plain = host(x, 3.0, shift=shift) + module(x), harden(layer)
    for args, kwargs in (
        ((x, 3.0), {"shift": shift}),
        ((), {"hidden": x, "gain": 3.0, "shift": shift}),
    ):
        assert torch.equal(layer(*args, **kwargs), expected)
        assert torch.equal(plain(*args, **kwargs), expected)


def test_attributes_of_the_host_are_read_through_the_layer() -> None:
    layer = KasminaLayer(nn.Linear(6, 4), name="fc", seeds=["lowrank"])
    assert layer.weight is layer.host.weight
    assert layer.in_features == 6
    assert not hasattr(layer, "_secret")
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        _ = layer.gone


def test_a_host_with_its_own_deepcopy_does_not_take_the_layers_place() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 4)))
    layer = KasminaLayer(traced, name="fc", seeds=["lowrank"])
    assert isinstance(copy.deepcopy(layer), KasminaLayer)


def test_a_host_that_writes_into_its_input_is_found_out_by_looking() -> None:
    case = next(case for case in CASES if case.name == "writes-into-input")
    model = case.model()
    assert isinstance(model, Copies)
    wrap(model, ["layer"], ["lowrank"])
    layer = model.layer
    assert isinstance(layer, KasminaLayer)
    assert not layer.mutates_input
    observe_shapes(model, {"layer": layer}, loss_fn=squares, batch=case.x())
    assert layer.mutates_input


def test_wrapping_keeps_the_modes_of_the_parts() -> None:
    frozen = nn.BatchNorm1d(6).eval()
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), frozen, nn.Dropout()))
    assert not frozen.training
    modes = {id(module): module.training for module in model.modules()}
    layer = wrapped(model, "0", 1, torch.randn(4, 6))
    assert {id(m): m.training for m in model.modules() if id(m) in modes} == modes
    grow(layer, 0, SeedState.HOLDING)
    plain = harden(model)
    assert [m.training for m in plain.modules() if isinstance(m, nn.BatchNorm1d)] == [False]
    assert [m.training for m in plain.modules() if isinstance(m, nn.Dropout)] == [True]


# --- kernels that do not fit ----------------------------------------------------------------------


class Constant(nn.Module):
    """Gives one shape, whatever it reads."""

    def __init__(self, *shape: int, several: bool = False) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(shape))
        self.several = several

    @override
    def forward(self, x: Tensor) -> object:
        y = self.value.expand(x.shape[0], *self.value.shape)
        return (y, y) if self.several else y


class Faulty(nn.Module):
    """Divides by zero."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 // 0)


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("linear", nn.Linear(6, 5), r"maps \(2, 6\) to \(2, 5\).*must be equal"),
        ("linear", Faulty(), "fails on the input of layer .0..*by zero"),
        ("linear", nn.Linear(7, 4), "fails on the input of layer '0'"),
        ("linear", nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)), "writes into the input"),
        ("linear", Constant(1), r"to \(2, 1\)"),
        ("linear", Constant(4, several=True), "to tuple"),
        ("conv2d-strided", Constant(4, 1, 1), r"to \(2, 4, 1, 1\)"),
        ("batchnorm2d", nn.AdaptiveAvgPool2d(1), r"to \(2, 3, 1, 1\)"),
    ],
)
def test_unfit_kernel_is_refused_and_nothing_changes(
    name: str, module: nn.Module, message: str
) -> None:
    case = next(case for case in CASES if case.name == name)
    model = case.model().eval()
    before = model(case.x())
    layer = wrapped(model, case.layer, 2, case.x())
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(KernelError, match=message):
        layer.load_kernel(1, module)
    assert layer.available_seeds == [0, 1]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(case.x()), before)


def test_kernel_of_unknown_fit_is_not_broadcast() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    wrap(model, ["0"], ["se"])
    layer = model[0]
    assert isinstance(layer, KasminaLayer)
    layer.load_kernel(0, Constant(4, 1, 1))
    for state in (SeedState.TRAINING, SeedState.BLENDING):
        layer.advance(0, state)
    with pytest.raises(
        KernelError, match=r"gives \(2, 4, 1, 1\) where its host gives \(2, 4, 3, 3"
    ):
        model(torch.randn(2, 3, 5, 5))


def test_one_module_is_not_loaded_twice() -> None:
    layer = KasminaLayer(nn.Linear(6, 4), name="fc", seeds=["lowrank", "lowrank"])
    module = nn.Linear(6, 4)
    layer.load_kernel(0, module)
    with pytest.raises(KernelError, match="in layer 'fc' already; load a copy"):
        layer.load_kernel(1, Kernel(module=module, kernel_id="again"))
    with pytest.raises(KernelError, match="already"):
        layer.load_kernel(1, layer.host)
    assert layer.available_seeds == [1]
