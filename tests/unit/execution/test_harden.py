"""Harden: the same outputs from plain modules, which run where Esper cannot be imported."""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError, KernelError
from esper.contracts.seeds import SeedState
from esper.execution.harden import harden
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Kernel, Recipe
from esper.execution.surgery import kasmina_layers, wrap
from tests.pairwise import every_pair
from tests.unit.execution.models import CASES, Case, Noisy, grow, wrapped

STATES = [
    SeedState.DORMANT,
    SeedState.TRAINING,
    SeedState.BLENDING,
    SeedState.HOLDING,
    SeedState.FOSSILIZED,
]
YES_NO = [True, False]


def grown(case: Case, state: SeedState) -> nn.Module:
    model = case.model()
    layer = wrapped(model, case.layer, 2, case.x())
    if state is not SeedState.DORMANT:
        grow(layer, 0, state)
    if state is SeedState.FOSSILIZED:
        layer.advance(0, SeedState.DORMANT)
        grow(layer, 0, SeedState.BLENDING, seed=3)
    return model


@pytest.mark.parametrize(
    ("case", "state", "training", "grad"), every_pair(CASES, STATES, YES_NO, YES_NO), ids=str
)
def test_equal_outputs_and_nothing_of_esper(
    case: Case, state: SeedState, *, training: bool, grad: bool
) -> None:
    model = grown(case, state).train(training)
    before = copy.deepcopy(model.state_dict())
    plain = harden(model)
    outputs = []
    for each in (model, plain):
        # Batch norm moves its statistics in each, so each runs on a copy.
        torch.manual_seed(4)
        with torch.set_grad_enabled(grad):
            outputs.append(copy.deepcopy(each)(case.x()))
    assert torch.equal(*outputs)
    assert model.state_dict().keys() == before.keys()
    assert isinstance(model.get_submodule(case.layer), KasminaLayer)
    for module in plain.modules():
        values = [type(module), *vars(module).values()]
        values += [h for v in vars(module).values() if isinstance(v, dict) for h in v.values()]
        homes = {getattr(v, "__module__", None) or type(v).__module__ for v in values}
        assert not any(str(home).startswith("esper") for home in homes)


def test_parameters_are_copies_and_still_train() -> None:
    case = CASES[0]
    model = grown(case, SeedState.FOSSILIZED)
    plain = harden(model)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in plain.parameters()}
    torch.autograd.backward(plain(case.x()).square().sum())
    torch.autograd.backward(model(case.x()).square().sum())
    theirs = [p.grad for p in plain.parameters() if p.grad is not None]
    ours = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(theirs) == len(ours) >= 6
    assert sum(g.double().sum() for g in ours) == pytest.approx(
        float(sum(g.double().sum() for g in theirs))
    )


def test_frozen_parameters_stay_frozen() -> None:
    model = grown(CASES[0], SeedState.FOSSILIZED).requires_grad_(False)
    assert not any(p.requires_grad for p in harden(model).parameters())


PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("esper", "tests"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
torch.set_num_threads(1)
for name in sys.argv[1:]:
    model, x, expected = torch.load(name, weights_only=False)
    assert torch.equal(model(x), expected), name
    model.train()(x).sum().backward()
assert not any(name.partition(".")[0] == "esper" for name in sys.modules)
print("ran", len(sys.argv) - 1)
"""


def test_runs_where_esper_cannot_be_imported(tmp_path: Path) -> None:
    files = []
    # Hosts of the user's own are the user's to import; these are made of torch.nn alone.
    names = ("linear", "conv2d-strided", "batchnorm2d", "mlp-block", "encoder-linear1", "layernorm")
    for case in (case for case in CASES if case.name in names):
        plain = harden(grown(case, SeedState.FOSSILIZED)).eval()
        with torch.no_grad():
            expected = plain(case.x())
        files.append(tmp_path / f"{case.name}.pt")
        # Gradients are recorded in the other process, which takes no fused path.
        torch.save((plain, case.x(), plain(case.x()).detach()), files[-1])
        assert torch.allclose(expected, plain(case.x()), atol=1e-6)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *files], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"ran {len(names)}\n"


@pytest.mark.parametrize("name", ["glu", "gate", "scale", "attention", "causal_mixer", "lowrank"])
def test_every_sort_of_kernel(name: str) -> None:
    case = next(case for case in CASES if case.name == "feed-forward")
    model = case.model()
    layer = wrapped(model, case.layer, 1, case.x())
    grow(layer, 0, SeedState.BLENDING, name=name)
    plain = harden(model)
    assert torch.equal(plain(case.x()), model(case.x()))
    homes = {type(module).__module__.partition(".")[0] for module in plain.modules()}
    assert "esper" not in homes


def test_a_placebo_is_left_out() -> None:
    case, x = next(case for case in CASES if case.name == "feed-forward"), torch.randn(6, 5, 8)
    model, host = case.model(), case.model()
    layer = wrapped(model, case.layer, 2, x)
    grow(layer, 0, SeedState.BLENDING, name="placebo")
    assert not torch.equal(model(x), host(x)), "it does something"
    assert torch.equal(harden(model)(x), host(x))
    grow(layer, 1, SeedState.BLENDING, name="glu")
    plain = harden(model)
    assert not torch.equal(plain(x), host(x))
    assert torch.allclose(plain(x)[:1], plain(x[:1]), atol=1e-6), "by itself as among others"


class Halving(nn.Module):
    """A kernel of the user's own, which cannot be traced and asks which mode it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) if self.training else 0.5 * self.linear(x)
        return y if bool((x > 0).any()) else -y


def blended(kernel: Kernel | nn.Module) -> nn.Module:
    model = wrap(nn.Sequential(nn.Linear(6, 4)), ["0"], ["lowrank"])
    layer = kasmina_layers(model)["0"]
    layer.load_kernel(0, kernel)
    for state in (SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING):
        layer.advance(0, state)
    return model


def test_a_kernel_of_the_users_own_stays_what_it_is() -> None:
    model, x = blended(Halving()), torch.randn(3, 6)
    plain = harden(model)
    for training in (True, False):
        assert torch.equal(plain.train(training)(x), model.train(training)(x))


def test_a_blueprints_kernel_that_cannot_be_traced_is_named() -> None:
    case = CASES[0]
    model = case.model()
    spec = wrapped(model, case.layer, 1, case.x()).spec
    assert spec is not None
    recipe = Recipe(blueprint="lowrank", spec=spec, budget=100, seed=0)
    model = blended(Kernel(module=Halving(), kernel_id="k", recipe=recipe))
    with pytest.raises(KernelError, match=r"layer '0' \(Halving\) cannot be traced by torch.fx"):
        harden(model)


def test_a_hardened_model_is_copied_and_its_state_loads() -> None:
    case = next(case for case in CASES if case.name == "residual")
    plain = harden(grown(case, SeedState.FOSSILIZED)).eval()
    twin = copy.deepcopy(plain)
    assert torch.equal(twin(case.x()), plain(case.x()))
    other = harden(grown(case, SeedState.FOSSILIZED)).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(case.x()), plain(case.x()))


def test_several_layers_at_once() -> None:
    torch.manual_seed(0)
    model = Noisy().eval()
    grow(wrapped(model, "fc1", 2, torch.randn(4, 6)), 1, SeedState.HOLDING)
    wrap(model, ["fc2"], ["lowrank"])
    plain = harden(model)
    assert isinstance(plain.fc2, nn.Linear)
    x = torch.randn(4, 6)
    assert torch.equal(plain(x), model(x))
    assert not kasmina_layers(plain)
    plain.load_state_dict(plain.state_dict())


class Keeping(nn.Module):
    """(B, 6) to (B, 4); keeps what it is given, and a tensor that it computed."""

    def __init__(self, **kept: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 4)
        self.seen: list[Tensor] = []
        self.latest: Tensor | None = None
        vars(self).update(kept)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(torch.relu(self.fc1(x)))
        self.latest = y.square().mean()
        self.seen = [self.latest]
        return y


def test_right_after_a_batch_tensors_have_their_values_and_no_graph() -> None:
    model, x = wrap(Keeping(), ["fc2"]), torch.randn(3, 6)
    prune.l1_unstructured(  # type: ignore[no-untyped-call]
        model.get_submodule("fc1"), "weight", 0.5
    )
    model(x)
    plain = harden(model)
    assert isinstance(plain, Keeping)
    assert plain.latest is not None
    assert plain.latest is plain.seen[0]
    assert plain.latest.is_leaf
    assert plain.latest == model.latest
    assert torch.equal(plain(x), model(x))


def test_what_cannot_be_copied_is_shared() -> None:
    lock: Any = Lock()
    state = {"lock": Lock(), "count": [1]}
    model = wrap(Keeping(lock=lock, state=state), ["fc2"])
    model.register_forward_hook(partial(lambda held, *_: None, Lock()))
    plain = harden(model)
    assert plain.lock is lock
    assert plain.state["lock"] is state["lock"]  # type: ignore[index]
    assert plain.state["count"] is not state["count"]  # type: ignore[index]
    assert plain.get_parameter("fc2.weight") is not model.get_parameter("fc2.host.weight")


def test_a_module_that_cannot_be_copied_is_refused_in_a_sentence() -> None:
    class Single(nn.Linear):
        def __deepcopy__(self, memo: Any) -> nn.Module:
            raise TypeError("there is one of a kind")

    with pytest.raises(ConfigError, match="a Sequential, cannot be copied: there is one of a"):
        harden(nn.Sequential(Single(2, 2)))


def test_the_copy_of_a_model_that_holds_its_tamiyo_holds_none() -> None:
    model = Keeping()
    vars(model)["tamiyo"] = engine(wrap(model, ["fc1"]))
    plain = harden(model)
    assert plain.tamiyo is None
    assert model.tamiyo is not None


@pytest.mark.parametrize("again", ["fc1", "fc2", "fc1.host"])
def test_a_hardened_model_grows_again(again: str) -> None:
    x = torch.randn(4, 6)
    model = Keeping()
    layer = wrapped(model, "fc1", 1, x)
    grow(layer, 0, SeedState.FOSSILIZED)
    plain = harden(model)
    engine(wrap(plain, [again])).close()
    grow(kasmina_layers(plain)[again], 0, SeedState.BLENDING)
    assert torch.equal(harden(plain)(x), plain(x))
    assert not torch.equal(plain(x), model(x))


def engine(model: nn.Module) -> esper.Tamiyo:
    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean(dim=1)  # type: ignore[no-any-return]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=[torch.randn(4, 6)])


@pytest.mark.parametrize("state", STATES, ids=str)
def test_hooks_that_came_after_wrapping_stay(state: SeedState) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    layer = wrapped(model, "0", 2, x)
    layer.register_forward_pre_hook(lambda _layer, given: (given[0] + 1,))
    doubled = layer.register_forward_hook(lambda _layer, _given, output: 2 * output)
    if state is not SeedState.DORMANT:
        grow(layer, 0, state)
    before = model(x)
    torch.testing.assert_close(harden(model)(x), before)
    assert torch.equal(model(x), before), "the model keeps its own"
    esper.unwrap(model, discard_grown=True)
    with_hooks = model(x)
    doubled.remove()
    assert not torch.equal(model(x), with_hooks), "a handle still removes its hook"


def test_a_model_that_was_never_wrapped() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    plain = harden(model)
    assert plain is not model
    assert torch.equal(plain(torch.ones(2, 6)), model(torch.ones(2, 6)))
