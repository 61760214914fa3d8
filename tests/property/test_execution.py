"""Any life that the table allows: the output is the sum it says, the state dict tells it all."""

import copy
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esper.contracts.errors import LifecycleError
from esper.contracts.seeds import SeedState
from esper.execution import checkpoint
from esper.execution.harden import harden
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.lifecycle import BLENDED, TRANSITIONS
from esper.execution.passes.isolation import shadow_step
from esper.execution.surgery import unwrap
from esper.execution.training import optimizers
from tests.unit.execution.models import kernel, squares, wrapped

SEEDS = 3
# Seed, which of the steps that it may take (none: ask for all that it may not), and an alpha.
Step = tuple[int, int | None, float]
STEPS = st.lists(
    st.tuples(
        st.integers(0, SEEDS - 1),
        st.sampled_from([0, 0, 0, 1, None]),
        st.floats(0, 1),
    ),
    max_size=25,
)
NAMES = st.lists(
    st.sampled_from(["lowrank", "bottleneck", "glu", "gate"]), min_size=25, max_size=25
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fresh() -> tuple[nn.Module, KasminaLayer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    return model, wrapped(model, "0", SEEDS, torch.randn(3, 5))


def live(layer: KasminaLayer, steps: list[Step], names: list[str]) -> None:
    """Ask for every step; those that the table lacks must be refused and change nothing."""
    for turn, (seed_idx, choice, alpha) in enumerate(steps):
        allowed = TRANSITIONS[layer.seed_states[seed_idx]]
        if choice is None:
            refuse(layer, seed_idx, set(SeedState) - set(allowed))
            continue
        state = allowed[choice % len(allowed)]
        if state is SeedState.GERMINATED:
            layer.load_kernel(seed_idx, kernel(layer, name=names[turn], seed=turn))
        else:
            layer.advance(seed_idx, state)
        if state is SeedState.BLENDING:
            layer.set_alpha(seed_idx, alpha)


def refuse(layer: KasminaLayer, seed_idx: int, states: set[SeedState]) -> None:
    before = layer.seed_states
    for state in states:
        with pytest.raises(LifecycleError, match="cannot become"):
            layer.advance(seed_idx, state)
    assert layer.seed_states == before


@settings(max_examples=60, deadline=None)
@given(STEPS, NAMES)
def test_any_life(steps: list[Step], names: list[str]) -> None:
    model, layer = fresh()
    live(layer, steps, names)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    expected = layer.host(x)
    for part in layer.contributions():
        term = part.kernel(x)
        expected = expected + (term if part.alpha is None else part.alpha * term)
    assert torch.equal(layer(x), expected)
    shown = sum(state in BLENDED for state in layer.seed_states) + len(layer.fossils)
    assert len(layer.contributions()) == shown
    assert layer.is_grown == (shown > 0)
    if not shown:
        assert torch.equal(model(x), torch.tanh(layer.host(x)))

    twin, _ = fresh()
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(twin(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(harden(model)(x), model(x))
    host = layer.host
    assert unwrap(model, discard_grown=True).get_submodule("0") is host


@settings(max_examples=20, deadline=None)
@given(STEPS, NAMES, st.integers(0, SEEDS - 1))
def test_a_shadow_step_changes_its_kernel_alone(
    steps: list[Step], names: list[str], seed_idx: int
) -> None:
    model, layer = fresh()
    live(layer, steps, names)
    if layer.seed(seed_idx).kernel is None:
        return
    own = list(layer.seed(seed_idx).as_kernel().module.parameters())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    sgd = torch.optim.SGD(own, lr=0.1)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    shadow_step(model, layer, seed_idx, loss_fn=squares, batch=x, optimizer=sgd)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(name.startswith(f"0.seeds.{seed_idx}.kernel.") for name in changed)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=12))
def test_adopting_and_discarding_leave_the_hosts_rates_alone(
    turns: list[tuple[bool, int]],
) -> None:
    runs = []
    for grows in (False, True):
        torch.manual_seed(0)
        host = nn.Linear(2, 2)
        kernels = [nn.Linear(2, 2) for _ in range(5)]
        optimizer = torch.optim.SGD(host.parameters(), lr=1.0, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=20)
        held: set[int] = set()
        rates = []
        for adopts, index in turns:
            if grows and adopts and index not in held:
                named = [(f"{index}.{n}", p) for n, p in kernels[index].named_parameters()]
                optimizers.adopt(optimizer, named, scheduler=schedule)
                held.add(index)
            elif grows and not adopts:
                optimizers.discard(optimizer, kernels[index].parameters(), schedule)
                held.discard(index)
            optimizer.step()
            schedule.step()
            assert len({group["lr"] for group in optimizer.param_groups}) == 1
            assert len(optimizer.param_groups[0]["params"]) == 2 + 2 * len(held)
            rates.append(optimizer.param_groups[0]["lr"])
        runs.append(rates)
    assert runs[0] == runs[1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 99), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=3) | st.integers(0, 99), VALUES, max_size=4))
def test_a_checkpoint_gives_back_what_it_was_given(tree: dict[Any, Any]) -> None:
    with TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "c", tree)
        found = checkpoint.load(Path(folder) / "c")
    assert found == tree
    assert repr(found) == repr(tree)
