"""Isolation: a seed learns in the shadow of its host, and the host does not notice."""

import copy
import random  # noqa: TID251 (its state must be put back)
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.contracts.errors import ConfigError, KernelError, LifecycleError
from esper.contracts.seeds import SeedState
from esper.execution.concealed import every_module
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.passes.counterfactual import counterfactual, evaluate
from esper.execution.passes.isolation import shadow_step
from esper.execution.passes.probes import probe
from esper.execution.shapes import observe_shapes
from esper.execution.side_effect_free import side_effect_free
from esper.execution.surgery import kasmina_layers, wrap
from esper.execution.training import optimizers
from tests.pairwise import every_pair
from tests.unit.execution.models import (
    CASES,
    Case,
    Checkpointed,
    Noisy,
    Twice,
    batches,
    grow,
    kernel,
    losses,
    squares,
    wrapped,
)

PASSES = ["shadow", "counterfactual", "probe", "observe", "evaluate"]


@dataclass
class Trace:
    """All that a pass on the side could disturb."""

    model: nn.Module
    kernels: set[int] = field(default_factory=set)

    def take(self) -> dict[str, Any]:
        modules = list(enumerate(every_module(self.model)))
        parameters = [
            (f"{i}.{name}", p)
            for i, module in modules
            for name, p in module.named_parameters(recurse=False)
            if id(p) not in self.kernels
        ]
        tensors = [*parameters, *self.model.named_buffers()]
        return {
            "values": [(name, id(t), t.detach().clone()) for name, t in tensors],
            "grads": [
                (name, p.grad, None if p.grad is None else p.grad.clone()) for name, p in parameters
            ],
            "requires_grad": [p.requires_grad for p in self.model.parameters()],
            "modes": [m.training for _, m in modules],
            "hooks": [
                len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.model.modules()
            ],
            "momenta": [getattr(m, "momentum", None) for m in self.model.modules()],
            "states": [layer.seed_states for layer in kasmina_layers(self.model).values()],
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
            "grad mode": torch.is_grad_enabled(),
            "fused": torch.backends.mha.get_fastpath_enabled(),
        }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def draw_everywhere() -> None:
    torch.rand(3)
    random.random()
    np.random.rand()  # noqa: NPY002


class BoomError(Exception):
    """Raised by a loss function in the middle of a pass."""


def noisy_losses(model: nn.Module, batch: Any) -> Tensor:
    """Draws from every random state, as an augmentation may."""
    draw_everywhere()
    return losses(model, batch)


def failing(model: nn.Module, batch: Any) -> Tensor:
    noisy_losses(model, batch)
    raise BoomError


def on_the_side(
    name: str, model: nn.Module, layer: KasminaLayer, loss_fn: Callable[..., Tensor]
) -> None:
    batch, holdout = batches(1)[0], batches(3, seed=1)
    optimizer = torch.optim.Adam(layer.seed(0).as_kernel().module.parameters())
    if name == "shadow":
        shadow_step(model, layer, 0, loss_fn=loss_fn, batch=batch, optimizer=optimizer)
    elif name == "counterfactual":
        counterfactual(
            model, layer, 0, loss_fn=loss_fn, holdout=holdout, calibration=batches(2, seed=2)
        )
    elif name == "probe":
        probe(model, kasmina_layers(model), loss_fn=loss_fn, batch=batch)
    elif name == "observe":
        observe_shapes(model, kasmina_layers(model), loss_fn=loss_fn, batch=batch)
    else:
        evaluate(model, loss_fn, holdout)


def noisy(state: SeedState) -> tuple[nn.Module, KasminaLayer]:
    torch.manual_seed(0)
    model = Noisy()
    layer = wrapped(model, "fc2", 2, torch.randn(4, 6))
    grow(layer, 0, state)
    return model, layer


@pytest.mark.parametrize(
    ("name", "state", "training", "fails"),
    every_pair(PASSES, [SeedState.TRAINING, SeedState.BLENDING], [True, False], [True, False]),
)
def test_a_pass_on_the_side_leaves_no_trace(
    name: str, state: SeedState, *, training: bool, fails: bool
) -> None:
    model, layer = noisy(state)
    torch.autograd.backward(losses(model, batches(1)[0]).mean())
    model.get_submodule("fc1").requires_grad_(False)
    model.train(training)
    model.get_submodule("norm").eval()
    kernels = (
        {id(p) for p in layer.seed(0).as_kernel().module.parameters()}
        if name == "shadow"
        else set()
    )
    trace = Trace(model, kernels)
    before = trace.take()
    if fails:
        with pytest.raises(BoomError):
            on_the_side(name, model, layer, failing)
    else:
        on_the_side(name, model, layer, noisy_losses)
    assert equal(before, trace.take())


@pytest.mark.trains
@pytest.mark.parametrize("how", ["plain", "checkpointed"])
def test_law_until_blending_the_host_is_its_control_bit_for_bit(how: str) -> None:
    """Weights, buffers, optimizer state and losses, with dropout, batch norm and Adam."""
    torch.manual_seed(0)
    control = Noisy() if how == "plain" else Checkpointed()
    name = "fc2" if how == "plain" else "second.0"
    model = copy.deepcopy(control)
    layer = wrapped(model, name, 3, torch.randn(4, 6))
    seeds = []
    for seed_idx in range(2):
        layer.load_kernel(seed_idx, kernel(layer, seed=seed_idx, awake=False))
        layer.advance(seed_idx, SeedState.TRAINING)
    runs = {}
    for each in (control, model):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(each.parameters() if each is control else host_of(each))
        if each is model:
            seeds = [
                optimizers.like(optimizer, layer.seed(i).as_kernel().module.parameters())
                for i in range(2)
            ]
        seen = []
        for step, batch in enumerate(batches(12)):
            optimizer.zero_grad()
            loss = losses(each, batch).mean()
            torch.autograd.backward(loss)
            optimizer.step()
            seen.append(loss.detach())
            if each is model:
                for seed_idx, own in enumerate(seeds):
                    shadow_step(model, layer, seed_idx, loss_fn=losses, batch=batch, optimizer=own)
                if step % 3 == 0:
                    for which in PASSES[1:]:
                        on_the_side(which, model, layer, noisy_losses)
        runs[each is model] = torch.stack(seen), optimizer.state_dict()["state"]
    assert equal(runs[False], runs[True])
    theirs = {n.replace(".host", ""): t for n, t in model.state_dict().items()}
    for key, value in control.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    kernels = [p for group in map(held_by, seeds) for p in group]
    assert all(bool(p.any()) for p in kernels)


def held_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def host_of(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if ".seeds." not in name]


@pytest.mark.trains
def test_a_seed_learns_what_its_host_cannot() -> None:
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(6, 3)), ["0"], ["bottleneck"])
    layer = kasmina_layers(model)["0"]
    observe_shapes(model, {"0": layer}, loss_fn=losses, batch=batches(1)[0])
    train, holdout = batches(60, 32), batches(6, 64, seed=9)
    host = torch.optim.Adam(model.parameters(), lr=0.02)
    for batch in train:
        host.zero_grad()
        torch.autograd.backward(losses(model, batch).mean())
        host.step()
    layer.load_kernel(0, kernel(layer, awake=False))
    layer.advance(0, SeedState.TRAINING)
    at_birth = counterfactual(model, layer, 0, loss_fn=losses, holdout=holdout)
    assert (at_birth.gain, at_birth.stderr) == (0.0, 0.0)
    own = torch.optim.Adam(layer.seed(0).as_kernel().module.parameters(), lr=0.02)
    for _ in range(4):
        for batch in train:
            shadow_step(model, layer, 0, loss_fn=losses, batch=batch, optimizer=own)
    found = [shadow_step(model, layer, 0, loss_fn=losses, batch=b, optimizer=own) for b in train]
    shadow = [float(loss) for loss in found if loss is not None]
    effect = counterfactual(model, layer, 0, loss_fn=losses, holdout=holdout)
    assert sum(shadow) / len(shadow) < evaluate(model, losses, train) - 0.1
    assert effect.gain > 0.1
    assert effect.gain > 5 * effect.stderr > 0


@pytest.mark.trains
def test_a_seed_that_learns_nothing_true_has_no_gain() -> None:
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(6, 3)), ["0"], ["bottleneck"])
    layer = kasmina_layers(model)["0"]
    observe_shapes(model, {"0": layer}, loss_fn=losses, batch=batches(1)[0])
    generator = torch.Generator().manual_seed(4)
    # Labels that nothing predicts; the host knows their frequencies.
    noise = [
        (x, torch.randint(0, 3, (len(x),), generator=generator)) for x, _ in batches(46, 64, seed=3)
    ]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    layer.load_kernel(0, kernel(layer, awake=False))
    own = torch.optim.SGD(layer.seed(0).as_kernel().module.parameters(), lr=0.02)
    for batch in noise[:40]:
        shadow_step(model, layer, 0, loss_fn=losses, batch=batch, optimizer=own)
    effect = counterfactual(model, layer, 0, loss_fn=losses, holdout=noise[40:])
    assert effect.stderr > 0
    assert abs(effect.gain) < 4 * effect.stderr


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "recurrent"], ids=str)
def test_shadow_gradient_is_that_of_the_seed_at_full_strength(case: Case) -> None:
    """The same model with the seed at alpha 1 gives the seed the same gradient."""
    model = case.model().eval()
    layer = wrapped(model, case.layer, 1, case.x())
    grow(layer, 0, SeedState.BLENDING)
    layer.set_alpha(0, 1.0)
    parameters = list(layer.seed(0).as_kernel().module.parameters())
    full = torch.autograd.grad(squares(model, case.x()).mean(), parameters)
    layer.unload(0)
    layer.advance(0, SeedState.DORMANT)
    grow(layer, 0, SeedState.TRAINING)
    start = [p.detach().clone() for p in layer.seed(0).as_kernel().module.parameters()]
    sgd = torch.optim.SGD(layer.seed(0).as_kernel().module.parameters(), lr=1.0)
    # What the user keeps in evaluation mode stays in it, so dropout cannot differ.
    model.training = True
    shadow_step(model, layer, 0, loss_fn=squares, batch=case.x(), optimizer=sgd)
    for old, new, gradient in zip(
        start, layer.seed(0).as_kernel().module.parameters(), full, strict=True
    ):
        assert torch.allclose(old - new, gradient, rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_called_twice_gets_its_whole_gradient() -> None:
    torch.manual_seed(0)
    model = Twice()
    x = torch.randn(4, 5)
    layer = wrapped(model, "step", 1, x)
    grow(layer, 0, SeedState.HOLDING)
    full = torch.autograd.grad(
        squares(model, x).mean(), list(layer.seed(0).as_kernel().module.parameters())
    )
    start = [p.detach().clone() for p in layer.seed(0).as_kernel().module.parameters()]
    sgd = torch.optim.SGD(layer.seed(0).as_kernel().module.parameters(), lr=1.0)
    shadow_step(model, layer, 0, loss_fn=squares, batch=x, optimizer=sgd)
    for old, new, gradient in zip(
        start, layer.seed(0).as_kernel().module.parameters(), full, strict=True
    ):
        assert torch.allclose(old - new, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PASSES)
def test_a_loss_under_autocast(name: str) -> None:
    def half(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses(model, batch)

    model, layer = noisy(SeedState.TRAINING)
    before = [p.detach().clone() for p in layer.seed(0).as_kernel().module.parameters()]
    on_the_side(name, model, layer, half)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before, layer.seed(0).as_kernel().module.parameters(), strict=True)
    ]
    assert any(changed) is (name == "shadow")
    assert {p.dtype for p in layer.seed(0).as_kernel().module.parameters()} == {torch.float32}


@pytest.mark.parametrize("which", ["shadow", "probe"])
def test_batch_norm_uses_what_it_has_learnt(which: str) -> None:
    """So no example of the batch moves another's loss, and one may be alone in a batch."""
    model, layer = noisy(SeedState.TRAINING)
    seen: list[tuple[bool, bool]] = []

    def spy(model: nn.Module, batch: Any) -> Tensor:
        parts = (model.get_submodule("norm"), model.get_submodule("drop"))
        seen.append((parts[0].training, parts[1].training))
        return losses(model, (batch[0][:1], batch[1][:1]))

    on_the_side(which, model.train(), layer, spy)
    assert seen == [(False, True)]


# --- frozen, tied and checkpointed models ---------------------------------------------------------


def test_a_frozen_host_grows() -> None:
    torch.manual_seed(0)
    model = Noisy().requires_grad_(False)
    layer = wrapped(model, "fc1", 2, torch.randn(4, 6))
    grow(layer, 0, SeedState.TRAINING, awake=False)
    before = copy.deepcopy(model.state_dict())
    own = torch.optim.Adam(layer.seed(0).as_kernel().module.parameters(), lr=0.01)
    for batch in batches(5):
        shadow_step(model, layer, 0, loss_fn=losses, batch=batch, optimizer=own)
    layer.advance(0, SeedState.BLENDING)
    layer.set_alpha(0, 1.0)
    model.eval()
    shadow = {
        name: p.detach().clone() for name, p in layer.seed(0).as_kernel().module.named_parameters()
    }
    for batch in batches(5, seed=1):
        own.zero_grad()
        torch.autograd.backward(losses(model, batch).mean())
        assert all(p.grad is None for p in host_of(model))
        own.step()
    assert all(
        not torch.equal(p, shadow[n])
        for n, p in layer.seed(0).as_kernel().module.named_parameters()
    )
    after = model.state_dict()
    for key, value in before.items():
        if ".seeds." not in key and "extra_state" not in key:
            assert torch.equal(value, after[key]), key


def test_a_trunk_in_evaluation_mode_stays_in_it() -> None:
    """Dropout that the user has switched off is off for the seed too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.9)), nn.Linear(6, 3))
    layer = wrapped(model, "1", 1, torch.randn(4, 6))
    grow(layer, 0, SeedState.TRAINING)
    own = torch.optim.SGD(layer.seed(0).as_kernel().module.parameters(), lr=0.0)
    batch = batches(1)[0]

    def shadow() -> float:
        loss = shadow_step(model, layer, 0, loss_fn=losses, batch=batch, optimizer=own)
        assert loss is not None
        return float(loss)

    model.train()
    noisy_loss = shadow()
    model[0].eval()
    with layer.showing(0, on=True), torch.no_grad():
        expected = float(losses(model, batch).mean())
    assert shadow() == pytest.approx(expected)
    assert noisy_loss != pytest.approx(expected)


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    @override
    def forward(self, x_BT: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(x_BT))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["head", "body"])
def test_tied_weights_stay_tied(name: str) -> None:
    torch.manual_seed(0)
    control = Tied()
    model = copy.deepcopy(control)
    x = torch.randint(0, 11, (3, 5))
    layer = wrapped(model, name, 1, x)
    grow(layer, 0, SeedState.TRAINING)
    own = torch.optim.SGD(layer.seed(0).as_kernel().module.parameters(), lr=0.1)
    for each in (control, model):
        optimizer = torch.optim.SGD(host_of(each), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(squares(each, x).mean())
            optimizer.step()
            if each is model:
                shadow_step(model, layer, 0, loss_fn=squares, batch=x, optimizer=own)
    assert torch.equal(control(x), model(x))
    assert model.get_submodule("head").weight is model.get_submodule("embedding").weight


@pytest.mark.parametrize("state", [None, SeedState.TRAINING, SeedState.BLENDING])
@pytest.mark.parametrize("name", ["first.0", "second.0", "second"])
def test_gradient_checkpointing_changes_no_gradient(name: str, state: SeedState | None) -> None:
    torch.manual_seed(0)
    model = Checkpointed()
    layer = wrapped(model, name, 1, torch.randn(4, 6))
    if state is not None:
        grow(layer, 0, state)
    twin = copy.deepcopy(model)
    plain = nn.Sequential(twin.first, twin.second, twin.head)
    gradients = []
    for each in (model, plain):
        torch.manual_seed(1)
        torch.autograd.backward(losses(each, batches(1)[0]).mean())
        gradients.append([p.grad for p in each.parameters()])
    assert equal(*gradients)
    grown = [p.grad is not None for p in layer.seeds.parameters()]
    assert any(grown) is (state is SeedState.BLENDING)


@pytest.mark.parametrize("which", ["shadow", "probe"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_reentrant_checkpointing_is_named(which: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Checkpointed(reentrant=True))
    layer = wrapped(model, "0", 1, torch.randn(4, 6))
    grow(layer, 0, SeedState.TRAINING)
    trace = Trace(model)
    before = trace.take()
    with pytest.raises(KernelError, match=r"reentrant.*use_reentrant=False"):
        on_the_side(which, model, layer, losses)
    assert equal(before, trace.take())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_inside_reentrant_checkpointing_no_seed_can_learn() -> None:
    torch.manual_seed(0)
    model = Checkpointed(reentrant=True)
    layer = wrapped(model, "first.0", 1, torch.randn(4, 6))
    grow(layer, 0, SeedState.TRAINING)
    own, batch = torch.optim.Adam(layer.seed(0).as_kernel().module.parameters()), batches(1)[0]
    assert shadow_step(model, layer, 0, loss_fn=losses, batch=batch, optimizer=own) is None
    assert probe(model, {"first.0": layer}, loss_fn=losses, batch=batches(1)[0]) == {}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda m, b: losses(m, b).mean(), "returned one number.*one loss per example"),
        (lambda m, b: squares(m, b[0]).unsqueeze(1), r"returned \(16, 1\)"),
        (lambda _m, _b: 1.0, "returned float"),
    ],
)
def test_losses_must_be_per_example(loss_fn: Callable[..., Any], message: str) -> None:
    model, layer = noisy(SeedState.TRAINING)
    for name in ("shadow", "counterfactual", "probe", "evaluate"):
        with pytest.raises(ConfigError, match=message):
            on_the_side(name, model, layer, loss_fn)


def test_a_loss_that_does_not_see_the_layer() -> None:
    model, layer = noisy(SeedState.TRAINING)
    module = layer.seed(0).as_kernel().module
    own = torch.optim.Adam(module.parameters())
    before = [p.clone() for p in module.parameters()]
    blind: Any = lambda _, batch: batch[0].sum(dim=1)  # noqa: E731
    batch = batches(1)[0]
    assert shadow_step(model, layer, 0, loss_fn=blind, batch=batch, optimizer=own) is None
    assert before
    assert equal(before, list(module.parameters()))
    assert not own.state


def test_an_empty_seed_has_no_shadow() -> None:
    model, layer = noisy(SeedState.TRAINING)
    optimizer = torch.optim.SGD(layer.seed(0).as_kernel().module.parameters(), lr=0.1)
    with pytest.raises(LifecycleError, match="seed 1 of layer 'fc2' is dormant and has no kernel"):
        shadow_step(model, layer, 1, loss_fn=losses, batch=batches(1)[0], optimizer=optimizer)
    with pytest.raises(LifecycleError, match="has no kernel"):
        counterfactual(model, layer, 1, loss_fn=losses, holdout=batches(1))


def test_frozen_parts_of_a_kernel_stay_as_they_are() -> None:
    model, layer = noisy(SeedState.TRAINING)
    layer.unload(0)
    layer.advance(0, SeedState.DORMANT)
    module = nn.Sequential(nn.Linear(8, 4).requires_grad_(False), nn.Linear(4, 8))
    layer.load_kernel(0, module)
    before = copy.deepcopy(module.state_dict())
    own = torch.optim.SGD(module.parameters(), lr=0.5)
    shadow_step(model, layer, 0, loss_fn=losses, batch=batches(1)[0], optimizer=own)
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1.weight", "1.bias"}


def test_hooks_of_a_first_pass_are_not_left_on_the_side() -> None:
    """A model that registers hooks once, when it first runs, as some of transformers do."""

    class Hooking(nn.Sequential):
        @override
        def forward(self, input: Tensor) -> Any:
            if not hasattr(self, "hooked"):
                self[0].register_forward_hook(lambda module, args, y: self.seen.append(y))
                self.hooked = True
            self.seen: list[Tensor] = []
            return self[0](input), len(self.seen)

    model = Hooking(nn.Linear(4, 4))
    for _ in range(2):
        with side_effect_free(model):
            assert model(torch.ones(2, 4))[1] == 1
    assert not model[0]._forward_hooks
    assert model(torch.ones(2, 4))[1] == 1
