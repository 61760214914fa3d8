"""Copies of batches of every kind: containers anew, tensors as they are unless asked."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esper.execution.passes.batches import OnCopies, addresses, copied, tensors_in


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    x: Tensor
    more: dict[str, Tensor]


class Graph:
    """As graph libraries have it: an object with tensors for attributes."""

    def __init__(self) -> None:
        self.x = torch.zeros(2)
        self.more = [torch.ones(1)]


MAKE: list[Callable[[], Any]] = [
    lambda: {"x": torch.zeros(2), "more": {"y": torch.ones(3)}},
    lambda: [torch.zeros(2), [torch.ones(3)]],
    lambda: (torch.zeros(2), {"y": torch.ones(3)}),
    lambda: UserDict({"x": torch.zeros(2), "y": torch.ones(3)}),
    lambda: Pair(torch.zeros(2), torch.ones(3)),
    lambda: Record(torch.zeros(2), {"y": torch.ones(3)}),
    Graph,
]


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("tensors", [False, True])
def test_a_copy_has_the_same_kind_and_tensors(make: Callable[[], Any], *, tensors: bool) -> None:
    batch = make()
    new = copied(batch, tensors=tensors)
    assert type(new) is type(batch)
    pairs = list(zip(tensors_in(batch), tensors_in(new), strict=True))
    assert len(pairs) == 2
    assert all((a is b) is not tensors and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("make", MAKE)
def test_what_is_taken_out_of_a_copy_stays_in_the_batch(make: Callable[[], Any]) -> None:
    batch = make()
    new = copied(batch)
    while hasattr(new, "pop") and len(new):
        new.popitem() if hasattr(new, "popitem") else new.pop()
    for name in list(getattr(new, "__dict__", {})):
        delattr(new, name)
    assert len(list(tensors_in(batch))) == 2


def test_what_is_no_container_is_handed_on() -> None:
    model = nn.Linear(2, 2)
    for value in ("text", 3, None, model, len):
        assert copied(value) is value
    array = np.zeros(2)
    copied({"x": array})["x"] += 1
    assert array.tolist() == [0.0, 0.0]


class Unwilling(Graph):
    def __copy__(self) -> "Unwilling":
        raise TypeError("there is one of me")


def test_what_does_not_want_to_be_copied_is_handed_on() -> None:
    batch = Unwilling()
    assert copied(batch, tensors=True) is batch


def test_tensors_are_copied_for_a_function_that_writes() -> None:
    def doubling(_model: nn.Module, batch: Tensor) -> float:
        return float(batch.mul_(2.0).sum())

    function, batch = OnCopies(doubling, "loss_fn"), torch.ones(2)
    assert [function(nn.Identity(), batch) for _ in range(3)] == [4.0] * 3
    function.settle()
    assert function.writes
    assert function(nn.Identity(), batch) == 4.0
    assert batch.tolist() == [1.0, 1.0]


def test_tensors_are_not_copied_for_one_that_does_not() -> None:
    seen: list[Tensor] = []
    function = OnCopies(lambda _model, batch: seen.append(batch), "loss_fn")
    batch = torch.ones(2)
    function(nn.Identity(), batch)
    function.settle()
    function(nn.Identity(), batch)
    assert [one is batch for one in seen] == [False, True]


def test_one_memory_has_one_address() -> None:
    x = torch.zeros(6, 2)
    assert addresses(x[:3]) == addresses({"x": torch.split(x, 3)[0]})
    assert len({addresses(part) for part in (x[:3], x[3:], x, x.clone(), (x, x))}) == 5
    assert addresses("text") == ()
