"""Compiled and exported models: no graph break, no needless recompile, no silent way to eager."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from esper.contracts.seeds import SeedState
from esper.execution.harden import harden
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.passes.counterfactual import counterfactual, evaluate
from esper.execution.passes.isolation import shadow_step
from esper.execution.passes.probes import probe
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, wrap
from tests.pairwise import every_pair
from tests.unit.execution.models import CASES, Case, Noisy, batches, grow, losses, wrapped

# Dynamo itself looks at the .grad of tensors that are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
NAMES = (
    "linear-3d",
    "conv2d-strided",
    "batchnorm1d",
    "residual",
    "feed-forward",
    "encoder-linear1",
    "encoder-layer",
    "inplace-block",
    "keywords",
    "recurrent",
)


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch.set_num_threads(threads)


def whole(model: nn.Module, backend: Any) -> Callable[..., Tensor]:
    return torch.compile(model, fullgraph=True, backend=backend)


def in_place(model: nn.Module, backend: Any) -> Callable[..., Tensor]:
    model.compile(fullgraph=True, backend=backend)
    return model


@pytest.mark.parametrize(
    ("case", "state", "grad"),
    every_pair(
        [case for case in CASES if case.name in NAMES],
        [SeedState.DORMANT, SeedState.BLENDING, SeedState.FOSSILIZED],
        [True, False],
    ),
    ids=str,
)
def test_whole_graph_dormant_active_and_kept(case: Case, state: SeedState, *, grad: bool) -> None:
    model = case.model().eval()
    layer = wrapped(model, case.layer, 1, case.x())
    if state is not SeedState.DORMANT:
        grow(layer, 0, state)
    counter = CompileCounter()
    with torch.set_grad_enabled(grad):
        found = whole(model, counter)(case.x())
        assert counter.frame_count == 1
        assert torch.allclose(found, model(case.x()), atol=1e-6)


def test_gradients_of_a_compiled_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    grow(wrapped(model, "0", 1, torch.randn(4, 6)), 0, SeedState.BLENDING)
    (batch,) = batches(1)
    gradients = []
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    for run in (model, compiled):
        loss = losses(run, batch).mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_the_default_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Code compiled for one processor must not be found by a run on another, and to ask which vector
    # instructions g++ knows takes four times as long as all the rest.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    grow(wrapped(model, "0", 1, torch.randn(4, 6)), 0, SeedState.BLENDING)
    run = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 6)
    for alpha in (0.25, 0.75):
        kasmina_layers(model)["0"].set_alpha(0, alpha)
        with torch.no_grad():
            assert torch.allclose(run(x), model(x), atol=1e-5)


@pytest.mark.parametrize("make", [whole, in_place])
def test_a_ramping_alpha_compiles_nothing_anew(make: Callable[..., Callable[..., Tensor]]) -> None:
    torch.manual_seed(0)
    model = Noisy().eval()
    layer = wrapped(model, "fc2", 1, torch.randn(4, 6))
    grow(layer, 0, SeedState.BLENDING)
    counter = CompileCounter()
    run, x = make(model, counter), torch.randn(5, 6)
    outputs = []
    for ramp in range(11):
        layer.set_alpha(0, ramp / 10)
        outputs.append(run(x).detach())
    assert counter.frame_count == 1
    layer.advance(0, SeedState.HOLDING)
    assert torch.equal(run(x), outputs[-1])
    assert counter.frame_count == 1
    assert len({float(y.sum()) for y in outputs}) == 11


@pytest.mark.parametrize("make", [whole, in_place])
@pytest.mark.parametrize("state", [SeedState.TRAINING, SeedState.BLENDING])
def test_passes_on_the_side_compile_nothing_and_stay_right(
    make: Callable[..., Any], state: SeedState
) -> None:
    """On the compiled model and on its eager twin they give the same numbers."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Noisy()
        layer = wrapped(model, "fc2", 1, torch.randn(4, 6))
        grow(layer, 0, state)
        counter = CompileCounter()
        run = make(model, counter) if compiled else model
        own = torch.optim.Adam(layer.seed(0).as_kernel().module.parameters(), lr=0.01)
        results: list[Any] = []
        (batch,), holdout = batches(1), batches(2, seed=1)
        for _ in range(3):
            results.append(losses(run, batch).detach())
            layers = kasmina_layers(model)
            results.append(shadow_step(run, layer, 0, loss_fn=losses, batch=batch, optimizer=own))
            results.append(
                counterfactual(run, layer, 0, loss_fn=losses, holdout=holdout, calibration=holdout)
            )
            results.append(probe(run, layers, loss_fn=losses, batch=batch))
            results.append(evaluate(run, losses, holdout))
            observe_shapes(run, layers, loss_fn=losses, batch=batch)
        assert counter.frame_count == compiled
        found.append((results, dict(model.named_parameters())))
    for plain, compiled_value in zip(found[0][0], found[1][0], strict=True):
        if isinstance(plain, Tensor):
            assert torch.allclose(plain, compiled_value, atol=1e-6)
        else:
            assert plain == compiled_value
    assert all(torch.equal(p, found[1][1][name]) for name, p in found[0][1].items())


@pytest.mark.parametrize("make", [whole, in_place])
def test_ten_growths_of_one_model_are_all_compiled(make: Callable[..., Any]) -> None:
    """Dynamo gives a function up after eight graphs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    layer = wrapped(model, "0", 1, torch.randn(4, 6))
    counter = CompileCounter()
    run, x = make(model, counter), torch.randn(5, 6)
    for growth in range(10):
        grow(layer, 0, SeedState.BLENDING, seed=growth)
        for _ in range(2):
            run(x)
            assert counter.frame_count == growth + 1
        layer.unload(0)
        layer.advance(0, SeedState.DORMANT)


def test_a_layer_that_only_germinates_compiles_nothing_anew() -> None:
    torch.manual_seed(0)
    model = Noisy().eval()
    layer = wrapped(model, "fc2", 2, torch.randn(4, 6))
    counter = CompileCounter()
    run, x = whole(model, counter), torch.randn(5, 6)
    run(x)
    grow(layer, 0, SeedState.TRAINING)
    run(x)
    layer.unload(0)
    run(x)
    layer.advance(0, SeedState.DORMANT)
    run(x)
    assert counter.frame_count == 1


def test_ten_layers_of_different_width_compiled_one_by_one() -> None:
    """They run the same code, so they would use up one limit of eight."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width + 1) for width in range(2, 12)))
    layers = kasmina_layers(wrap(model, [str(i) for i in range(10)], ["lowrank"]))
    counter = CompileCounter()
    for layer in layers.values():
        layer.compile(backend=counter)
    x = torch.randn(3, 2)
    with torch.compiler.set_stance("force_eager"):
        expected = model(x)
    assert counter.frame_count == 0
    for _ in range(2):
        assert torch.equal(model(x), expected)
    assert counter.frame_count == 10
    for state in (SeedState.GERMINATED, SeedState.TRAINING, SeedState.BLENDING):
        for name in ("3", "7"):
            if state is SeedState.GERMINATED:
                layers[name].load_kernel(0, nn.Linear(int(name) + 2, int(name) + 3))
            else:
                layers[name].advance(0, state)
    model(x)  # growth drops all graphs, and all of them are compiled again
    assert counter.frame_count == 2 * 10


def test_wrapping_a_compiled_model() -> None:
    torch.manual_seed(0)
    model = Noisy().eval()
    counter = CompileCounterWithBackend("eager")
    run, x = whole(model, counter), torch.randn(5, 6)
    expected = run(x)
    wrap(model, ["fc1", "fc2"], ["lowrank"])
    assert torch.equal(run(x), expected)
    layer = kasmina_layers(model)["fc2"]
    observe_shapes(model, {"fc2": layer}, loss_fn=losses, batch=batches(1)[0])
    grow(layer, 0, SeedState.BLENDING)
    assert torch.equal(run(x), model(x))
    assert not torch.equal(run(x), expected)
    assert set(kasmina_layers(run)) == {"_orig_mod.fc1", "_orig_mod.fc2"}  # type: ignore[arg-type]
    plain = harden(run)  # type: ignore[type-var]
    assert isinstance(plain, Noisy)
    assert torch.equal(plain(x), model(x))


# --- export ---------------------------------------------------------------------------------------

EXPORTED = [
    case
    for case in CASES
    if case.name in ("linear", "conv1d", "conv2d-strided", "residual", "feed-forward", "keywords")
]


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_a_hardened_model_is_exported_with_a_dynamic_batch(case: Case) -> None:
    model = case.model().eval()
    layer = wrapped(model, case.layer, 2, case.x())
    grow(layer, 0, SeedState.FOSSILIZED)
    grow(layer, 1, SeedState.BLENDING)
    plain = harden(model)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(plain, (case.x(),), dynamic_shapes=({0: batch},))
    for size in (2, 7):
        x = torch.randn(size, *case.shape[1:], generator=torch.Generator().manual_seed(size))
        assert torch.allclose(exported.module()(x), model(x), atol=1e-6)


def test_a_grown_model_is_exported_as_it_is_too() -> None:
    case = EXPORTED[0]
    model = case.model().eval()
    layer = wrapped(model, case.layer, 1, case.x())
    grow(layer, 0, SeedState.HOLDING)
    assert isinstance(layer, KasminaLayer)
    exported = torch.export.export(model, (case.x(),))
    assert torch.allclose(exported.module()(case.x()), model(case.x()), atol=1e-6)
