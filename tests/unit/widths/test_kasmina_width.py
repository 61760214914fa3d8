"""Kernels in widths: what the model computes with them, before a merge and behind it."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from typing_extensions import override

import esper
from esper.contracts.seeds import SeedState
from esper.execution.passes.batches import tensors_in
from esper.execution.passes.counterfactual import counterfactual
from esper.execution.passes.isolation import shadow_step
from esper.widths.hooks import Missing
from tests.unit.widths.grown import exact, far, grow, made, outputs, widths, wrapped
from tests.unit.widths.test_found import CASES, ROWS

MODELS = [name for name in CASES if CASES[name][2]]
every_model = pytest.mark.parametrize("case", MODELS)
both_modes = pytest.mark.parametrize("training", [True, False])


@every_model
@both_modes
def test_nothing_changes_in_isolation(case: str, *, training: bool) -> None:
    host, x = made(case)
    model, _ = wrapped(case)
    before = outputs(host.train(training), x)
    model.train(training)
    assert exact(outputs(model, x), before)
    for width in widths(model):
        grow(width, to="training")
    assert exact(outputs(model, x), before)


@every_model
@both_modes
def test_units_that_nothing_reads_change_nothing(case: str, *, training: bool) -> None:
    host, x = made(case)
    model, _ = wrapped(case)
    before = outputs(host.train(training), x)
    model.train(training)
    for index, width in enumerate(widths(model)):
        kernel = grow(width, awake=index % 2 == 1)
        if index % 2:
            continue  # alpha is 0
        width.set_alpha(0, 1.0)  # its columns are zero
        assert all(not p.any() for n, p in kernel.named_parameters() if n.startswith("consumer"))
    assert far(outputs(model, x), before) < 1e-6


@every_model
@both_modes
@pytest.mark.parametrize("backwards", [True, False])
def test_a_merge_changes_no_output(case: str, *, training: bool, backwards: bool) -> None:
    model, x = wrapped(case)
    model.train(training)
    identities = dict(model.named_parameters())
    alone = outputs(model, x)
    kernels = [(w, grow(w, i, 1 + i, to="fossilized")) for w in widths(model) for i in range(2)]
    apart = outputs(model, x)
    assert far(apart, alone) > 1e-3
    for width, kernel in reversed(kernels) if backwards else kernels:
        width.merge(kernel)
        assert far(outputs(model, x), apart) < 1e-6
    assert identities == dict(model.named_parameters())
    assert all(p is identities[name] for name, p in model.named_parameters())


@every_model
def test_alpha_in_between(case: str) -> None:
    model, x = wrapped(case)
    model.eval()
    width = widths(model)[0]
    grow(width)
    found = []
    for alpha in (0.0, 0.25, 1.0):
        width.set_alpha(0, alpha)
        found.append(outputs(model, x))
    assert far(found[0], found[1]) > 0
    assert far(found[1], found[2]) > 0
    width.set_alpha(0, 0.25)
    for path, module in model.named_modules():
        assert not path.endswith("width") or module.state_dict()


@every_model
def test_gradients_are_carried(case: str) -> None:
    model, x = wrapped(case)
    kernels = [(w, grow(w, to="fossilized")) for w in widths(model)]
    for width, kernel in kernels:
        backward(model, x)
        pieces = {n: p.grad for n, p in kernel.named_parameters()}
        assert any(gradient is not None and gradient.any() for gradient in pieces.values())
        width.merge(kernel)
        carried = {n: p.grad for n, p in model.named_parameters()}
        backward(model, x)
        for name, parameter in model.named_parameters():
            held, gradient = carried[name], parameter.grad
            assert (held is None) is (gradient is None)
            if held is not None and gradient is not None:
                # Where rows and columns cross, there was no parameter before.
                told = torch.where(held == 0, held, gradient)
                assert far([held], [told]) < 1e-4, name


def backward(model: nn.Module, x: Any) -> None:
    model.eval().zero_grad()
    losses = [y.square().mean() for y in tensors_in(model(x))]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def normed() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    return esper.wrap(model, widen="auto", example=ROWS), ROWS


def test_statistics_of_new_channels() -> None:
    model, x = normed()
    host: Any = model[1]
    (width,) = widths(model)
    kernel: Any = grow(width)
    other = grow(width, 1, to="training")
    norm: Any = kernel.get_submodule("norm1")
    apart: Any = other.get_submodule("norm1")
    before, aside = host.running_mean.clone(), apart.running_mean.clone()
    model.eval()(x)
    assert torch.equal(host.running_mean, before)
    mean = norm.running_mean.clone()
    model.train()(x)
    new = x @ kernel.producer0.weight.T + kernel.producer0.bias
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * new.mean(0))
    torch.testing.assert_close(host.running_mean, 0.9 * before + 0.1 * model[0](x)[:, :6].mean(0))
    assert torch.equal(apart.running_mean, aside)
    assert host.running_mean.shape == (6,)
    assert host.num_batches_tracked == 1
    frozen = norm.running_mean.clone()
    host.eval()  # as in fine-tuning
    model(x)
    assert torch.equal(norm.running_mean, frozen)
    kept = (host.running_mean.clone(), norm.running_mean.clone())
    for state in (SeedState.HOLDING, SeedState.FOSSILIZED):
        width.advance(0, state)
    width.merge(kernel)
    assert torch.equal(host.running_mean, torch.cat(kept))
    assert host.num_features == 8


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_of_new_channels_follow_a_training_in_isolation(*, frozen: bool) -> None:
    model, x = normed()
    host: Any = model.train()[1]
    host.train(not frozen)
    (width,) = widths(model)
    kernel: Any = grow(width, to="training")
    norm, before = kernel.get_submodule("norm1"), host.running_mean.clone()

    def losses(inner: nn.Module, batch: Tensor) -> Tensor:
        return inner(batch).square().mean(1)  # type: ignore[no-any-return]

    for _ in range(80):
        still = SGD(kernel.parameters(), lr=0.0)
        shadow_step(model, width, 0, loss_fn=losses, batch=x, optimizer=still)
    new = x @ kernel.producer0.weight.T + kernel.producer0.bias
    torch.testing.assert_close(norm.running_mean, new.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, new.var(0), rtol=1e-3, atol=1e-3)
    assert torch.equal(host.running_mean, before)


class Halves(nn.Module):
    """Widths inside each half, and one between them."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
        self.upper = nn.Sequential(nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))

    @override
    def forward(self, x: Tensor) -> Any:
        return self.upper(self.lower(x))


@pytest.mark.parametrize("awake", [False, True])
@pytest.mark.parametrize("part", ["lower", "upper", "lower.0", "lower.2", "upper.1", ""])
def test_a_deep_copy_of_a_part_has_that_part_alone(part: str, *, awake: bool) -> None:
    torch.manual_seed(0)
    model = esper.wrap(Halves(), widen="auto", example=ROWS)
    assert len(widths(model)) == 3
    for width in widths(model) if awake else ():
        grow(width)
    origin = model.get_submodule(part)
    memo: dict[int, Any] = {}
    twin = deepcopy(origin, memo)
    hosts = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert {m for m in hosts if id(m) in memo and isinstance(memo[id(m)], nn.Linear)} == {
        m for m in origin.modules() if isinstance(m, nn.Linear)
    }
    first = next(m for m in origin.modules() if isinstance(m, nn.Linear))
    x = torch.randn(3, first.in_features + 2 * (awake and first is not hosts[0]))
    assert torch.equal(twin(x), origin(x))
    for width in widths(twin):
        whole = not any(isinstance(one, Missing) for _, one in width.members)
        assert whole or "in a copy of a part of its model" in width.misfit(twin)
        assert not whole or width.misfit(twin) == ""
    assert torch.equal(deepcopy(twin)(x), origin(x))


def test_a_pass_on_the_side_leaves_what_acts() -> None:
    model, x = normed()
    (width,) = widths(model)
    grow(width)
    width.set_alpha(0, 0.5)
    model.eval()
    before, state = outputs(model, x), {k: v.clone() for k, v in model.state_dict().items()}

    def loss_fn(m: nn.Module, b: Tensor) -> Tensor:
        return m(b).square().mean(1)  # type: ignore[no-any-return]

    counterfactual(model, width, 0, loss_fn=loss_fn, holdout=[x], calibration=[x])
    assert exact(outputs(model, x), before)
    grow(width, 1, to="training")
    parameters = width.seed(1).as_kernel().module.parameters()
    shadow_step(model, width, 1, loss_fn=loss_fn, batch=x, optimizer=SGD(parameters, lr=0.1))
    assert exact(outputs(model, x), before)
    now = model.state_dict()
    assert all(torch.equal(now[key], value) for key, value in state.items() if "extra" not in key)


def test_one_example_has_no_statistics() -> None:
    model, x = normed()
    (width,) = widths(model)
    kernel = grow(width, to="training")
    parameters = list(kernel.parameters())
    shadow_step(
        model.eval(),
        width,
        0,
        loss_fn=lambda m, b: m(b).square().mean(1),
        batch=x[:1],
        optimizer=SGD(parameters, lr=0.1),
    )
    assert all(bool(p.isfinite().all()) for p in parameters)


def test_a_pass_that_raises_leaves_the_weights() -> None:
    model, x = normed()
    (width,) = widths(model)
    grow(width)
    model.eval()
    before = outputs(model, x)
    names = set(dict(model.named_parameters()))
    with pytest.raises(RuntimeError):
        model(x[:, :3])
    assert exact(outputs(model, x), before)

    def fail(module: nn.Module, args: Any) -> None:
        raise ValueError("no")

    for position in (True, False):
        handle = model[3].register_forward_pre_hook(fail, prepend=position)
        with pytest.raises(ValueError, match="no"):
            model(x)
        handle.remove()
        assert model[3].weight.shape == (4, 6)
        assert exact(outputs(model, x), before)
    assert set(dict(model.named_parameters())) == names


def test_no_hook_is_left_behind() -> None:
    model, _ = normed()
    (width,) = widths(model)
    before = hooks(model)
    grow(width)
    assert hooks(model) != before
    width.unload(0)
    assert hooks(model) == before
    grow(width, 1)
    plain = esper.unwrap(model, discard_grown=True)
    assert set(hooks(plain)) == {(0, 0, 0)}
    assert not any("esper" in type(m).__module__ for m in plain.modules())


def hooks(model: nn.Module) -> list[Any]:
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ]
