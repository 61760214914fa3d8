"""PyTorch's default device and type are the user's: Esper follows the model, whatever they are.

The default device is here ``meta``, where nothing has values: what relied on it would fail.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

import esper
from esper.adapters.switching import disabled
from esper.services.tamiyo.settings import config_from
from tests.loops.trial import HOLDOUT, SOON, TRAIN, Net, loss_fn
from tests.unit.adapters import test_adapt as adapting
from tests.unit.services.small_run import host

pytestmark = pytest.mark.trains
DEFAULTS = (torch.device("meta"), torch.float64, torch.bfloat16)


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """A failing test leaves no defaults behind."""
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def become(default: torch.device | torch.dtype) -> None:
    if isinstance(default, torch.device):
        torch.set_default_device(default)
    else:
        torch.set_default_dtype(default)


def grown(model: nn.Module, defaults: torch.device | torch.dtype | None, **wrapped: Any) -> str:
    """Train for ten epochs under other defaults; what was told of every graft."""
    if defaults is not None:
        become(defaults)
    esper.wrap(model, **wrapped)
    optimizer = SGD(model.parameters(), lr=0.05)  # it makes no tensors of its own
    config = config_from({"growth": {**SOON, "budget": 300}})
    tamiyo = esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=HOLDOUT, config=config)
    for epoch in range(10):
        for batch in TRAIN:
            optimizer.zero_grad()
            torch.autograd.backward(loss_fn(model, batch).mean())
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    ends = [event.data for event in tamiyo.events() if event.kind == "graft"]
    assert any(end["kept"] for end in ends)
    esper.harden(model)
    of_the_model = torch.device("cpu"), torch.float32
    assert {(p.device, p.dtype) for p in model.parameters()} == {of_the_model}
    return str([(end["seed"], end["why"]) for end in ends])


@pytest.mark.parametrize("defaults", DEFAULTS, ids=str)
@pytest.mark.parametrize("widen", [(), "auto"])
def test_a_run_is_the_same_under_any_defaults(
    defaults: torch.device | torch.dtype,
    widen: tuple[()] | str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sites: dict[str, Any] = {"layers": ["fc1", "fc2"]}
    if widen:
        sites = {"widen": widen, "example": HOLDOUT[0], "loss_fn": loss_fn}
    told = []
    for default in (None, defaults):
        torch.manual_seed(0)
        model = host(restless=False) if widen else Net()
        told.append(grown(model, default, **sites))
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert told[0] == told[1]
    assert "fails" not in caplog.text
    assert "failed" not in caplog.text


@pytest.mark.parametrize("defaults", DEFAULTS, ids=str)
def test_an_adapter_is_saved_and_loaded_under_any_defaults(
    defaults: torch.device | torch.dtype, tmp_path: Path
) -> None:
    model, fresh = adapting.host(), adapting.host()
    inputs = adapting.batches(1, 5)[0][0]
    before = model(inputs)
    become(defaults)
    adapting.adapted(model, rate=0.05, make=SGD)
    esper.save_adapter(model, tmp_path)
    esper.load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(inputs), model(inputs))
    with disabled(model):
        assert torch.equal(model(inputs), before)
    torch.testing.assert_close(esper.merge(model)(inputs), model(inputs))
