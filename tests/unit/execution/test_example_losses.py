"""Losses in the shapes in which people have them, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError
from esper.execution.passes.isolation import example_losses

NAN = float("nan")
TOKENS = torch.tensor([[1.0, 3.0, NAN], [2.0, NAN, NAN], [NAN, NAN, NAN]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])


def of(found: Any, batch: Any = None) -> Tensor:
    return example_losses(lambda _model, _batch: found, nn.Identity(), batch)


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32])
def test_tokens_are_averaged_where_the_mask_is_not_zero(kind: torch.dtype) -> None:
    # (1 + 3) / 2 and 2 / 1; the third example has no token.
    assert of((TOKENS, MASK.to(kind))).tolist() == [2.0, 2.0]


def test_what_is_masked_has_no_gradient() -> None:
    losses = torch.tensor([[1.0, 5.0], [2.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    of((losses, mask)).sum().backward()  # type: ignore[no-untyped-call]
    assert losses.grad is not None
    assert losses.grad.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_tokens_without_a_mask_all_count() -> None:
    assert of(torch.tensor([[1.0, 3.0, 5.0], [0.0, 0.0, 6.0]])).tolist() == [3.0, 2.0]


@pytest.mark.parametrize("batch", [torch.zeros(1, 3), {"x": torch.zeros(1)}, (torch.zeros(1, 2),)])
def test_a_batch_of_one_may_give_a_number(batch: Any) -> None:
    assert of(torch.tensor(0.5), batch).tolist() == [0.5]


@pytest.mark.parametrize(
    ("found", "shape"),
    [
        (torch.tensor(0.5), "one number, as a mean of the batch"),
        (torch.zeros(4, 1), r"\(4, 1\)"),
        (1.0, "float"),
    ],
)
def test_a_mean_is_none(found: Any, shape: str) -> None:
    with pytest.raises(ConfigError, match=rf"returned {shape}; it must return one loss per ex"):
        of(found, torch.zeros(4, 3))
