"""State that is kept in places of all kinds, and whose effect begins after some batches."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.execution.passes.isolation import LossFn
from esper.execution.undoing.reachable import walk
from tests.unit.services.small_run import Batch, SmallRun, host, loss_fn, same, settings

NEVER_BLENDS = settings(train_epochs=50)

mine: Any = ModuleType("settings_of_mine")
mine.__file__ = __file__


def ramp(steps: int) -> float:
    """One for as many batches as are seen before a run begins, as of a warm-up."""
    return 1.0 if steps <= 6 else 1 + 0.05 * (steps - 6)


def counting(model: nn.Module, step: Callable[[], int], batch: Batch) -> Tensor:
    return loss_fn(model, batch) * ramp(step() if model.training else 0)


def class_attribute() -> LossFn:
    class Settings:
        step = 0

    def step() -> int:
        Settings.step += 1
        return Settings.step

    return lambda model, batch: counting(model, step, batch)


def module_attribute() -> LossFn:
    mine.step = 0

    def step() -> int:
        mine.step += 1
        return int(mine.step)

    return lambda model, batch: counting(model, step, batch)


def function_attribute() -> LossFn:
    def step() -> int:
        step.n += 1  # type: ignore[attr-defined]
        return int(step.n)  # type: ignore[attr-defined]

    step.n = 0  # type: ignore[attr-defined]
    return lambda model, batch: counting(model, step, batch)


def default_argument() -> LossFn:
    def step(*, kept: dict[str, int] = {"n": 0}) -> int:  # noqa: B006 (what is tried)
        kept["n"] += 1
        return kept["n"]

    return lambda model, batch: counting(model, step, batch)


def behind_a_decorator() -> LossFn:
    kept = {"n": 0}

    @torch.no_grad()
    def step() -> int:
        kept["n"] += 1
        return kept["n"]

    return lambda model, batch: counting(model, step, batch)


def nested_counter() -> LossFn:
    kept: Any = defaultdict(lambda: defaultdict(int))

    def step() -> int:
        kept["train"]["n"] += 1
        return int(kept["train"]["n"])

    return lambda model, batch: counting(model, step, batch)


def late_history() -> LossFn:
    history: defaultdict[str, list[float]] = defaultdict(list)

    def weighted(model: nn.Module, batch: Batch) -> Tensor:
        losses = loss_fn(model, batch)
        kept = history["mse"]
        weight = kept[-1] / kept[-2] if len(kept) > 1 else 1.0
        if model.training:
            kept.append(float(losses.detach().mean()))
        return weight * losses

    return weighted


def late_object() -> LossFn:
    class Meter:
        n = 0

    meters: dict[str, Meter] = {}

    def step() -> int:
        meters.setdefault("m", Meter()).n += 1
        return meters["m"].n

    return lambda model, batch: counting(model, step, batch)


def late_average() -> LossFn:
    kept: dict[str, Tensor] = {}

    def pulled(model: nn.Module, batch: Batch) -> Tensor:
        y = model(batch[0])
        mean = y.detach().mean(0)
        if model.training:
            kept["mean"] = kept["mean"].lerp_(mean, 0.1) if kept else mean.clone()
        pull: Tensor = (y - kept.get("mean", mean)).square().mean(1)
        return loss_fn(model, batch) + 0.1 * pull

    return pulled


class Reversal(torch.autograd.Function):
    """Counts its backward passes, and grows with them."""

    count: ClassVar[int] = 0

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Reversal.count += 1
        return -0.01 * Reversal.count * gradient


def backward_only() -> LossFn:
    Reversal.count = 0

    def reversed_(model: nn.Module, batch: Batch) -> Tensor:
        y: Tensor = Reversal.apply(model(batch[0]))  # type: ignore[no-untyped-call]
        return loss_fn(model, batch) + 0.1 * y.square().mean(1)

    return reversed_


def both(make: Callable[[], LossFn], make_model: Callable[[], nn.Module] = host) -> SmallRun:
    """A run in which nothing is blended, equal to its control."""
    runs = []
    for grown in (True, False):
        torch.manual_seed(5)
        runs.append(
            SmallRun(grown=grown, config=NEVER_BLENDS, loss_fn=make(), model=make_model()).run(3)
        )
    assert same(runs[0].state(), runs[1].state())
    return runs[0]


@pytest.mark.parametrize(
    "make",
    [
        class_attribute,
        module_attribute,
        function_attribute,
        default_argument,
        behind_a_decorator,
        nested_counter,
        late_history,
        late_object,
        late_average,
        backward_only,
    ],
)
def test_state_whose_effect_begins_late_is_put_back(make: Callable[[], LossFn]) -> None:
    assert both(make).facts("decision")


class Remembering(nn.Module):
    """Has a list in a dictionary from its first pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, list[float]] = {}

    @override
    def forward(self, x: Tensor) -> Tensor:
        kept = self.history.setdefault("std", [])
        if self.training:
            kept.append(float(x.detach().std()))
        return x * (kept[-1] / kept[-2] if len(kept) > 2 else 1.0)


def test_a_list_that_appears_in_a_module_is_put_back() -> None:
    def remembering() -> nn.Module:
        model = host()
        model.act = nn.Sequential(nn.ReLU(), Remembering())
        return model

    assert both(lambda: loss_fn, remembering).facts("decision")


# --- what cannot be put back ----------------------------------------------------------------------

OTHERS: Any = TensorDataset(torch.randn(512, 6, generator=torch.Generator().manual_seed(9)))


def with_others(model: nn.Module, batch: Batch, draw: Callable[[], Tensor]) -> Tensor:
    losses = loss_fn(model, batch)
    return losses + 0.1 * model(draw()).square().mean() if model.training else losses


def iterator_in_a_closure() -> LossFn:
    others: Any = None

    def draw() -> Any:
        nonlocal others
        try:
            return next(others)[0]
        except (TypeError, StopIteration):
            others = iter(DataLoader(OTHERS, 8))
            return next(others)[0]

    return lambda model, batch: with_others(model, batch, draw)


def iterator_in_a_dictionary() -> LossFn:
    kept: dict[str, Iterator[Any]] = {}

    def draw() -> Any:
        return next(kept.setdefault("others", iter(OTHERS.tensors[0].split(8))))

    return lambda model, batch: with_others(model, batch, draw)


class Drawing:
    """Makes its iterator at its first use."""

    others: Any = None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return with_others(model, batch, self.draw)

    def draw(self) -> Any:
        if self.others is None:
            self.others = iter(OTHERS.tensors[0].split(8))
        return next(self.others)


@pytest.mark.parametrize("make", [iterator_in_a_closure, iterator_in_a_dictionary, Drawing])
def test_an_iterator_that_appears_ends_the_passes_on_the_side(
    make: Callable[[], LossFn], caplog: pytest.LogCaptureFixture
) -> None:
    assert not both(make).facts("decision")
    told = {r.getMessage() for r in caplog.records if "by now" in r.getMessage()}
    assert any("others' is a " in message for message in told), told
    assert len(told) < 4


def test_a_bank_of_too_many_entries_is_named() -> None:
    bank = {i: torch.zeros(3) for i in range(1500)}

    def banked(model: nn.Module, batch: Batch) -> Tensor:
        y = model(batch[0])
        for i, row in enumerate(y.detach()):
            bank[i].lerp_(row, 0.1)
        losses: Tensor = (y - torch.stack([bank[i] for i in range(len(y))])).square().mean(1)
        return losses

    with pytest.raises(ConfigError, match=r"'bank' has 1,500 entries, .* more than 1,000 are not"):
        SmallRun(loss_fn=banked)


def test_reach_ends_at_libraries() -> None:
    def reaching() -> Any:
        return torch.nn, pytest, sys, mine.step, nn.Linear, Reversal

    mine.step = 0
    wanted = [reaching, Reversal, Reversal.backward, Reversal.forward]
    assert [found.value for found in walk(reaching)] == wanted
