"""The host alone: blocks that nest, overlap and run in threads, and what waits for their end."""

import io
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.contracts.errors import LifecycleError
from tests.unit.adapters.test_adapt import adapted, batches, host, loss_fn
from tests.unit.adapters.test_adapters import model as model  # noqa: PLC0414 (a fixture)
from tests.unit.adapters.test_adapters import outputs


def test_blocks_nest(model: nn.Module) -> None:
    on = outputs(model)
    with esper.disabled(model):
        with esper.disabled(model):
            assert torch.equal(outputs(model), outputs(host()))
        assert torch.equal(outputs(model), outputs(host()))
    assert torch.equal(outputs(model), on)


def test_blocks_overlap(model: nn.Module) -> None:
    on, one, other = outputs(model), esper.disabled(model), esper.disabled(model)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.equal(outputs(model), outputs(host()))
    other.__exit__(None, None, None)
    assert torch.equal(outputs(model), on)


def test_blocks_of_several_threads(model: nn.Module) -> None:
    on, alone = outputs(model), outputs(host())
    wrong = []

    def look() -> None:
        for _ in range(50):
            with esper.disabled(model):
                wrong.append(not torch.equal(outputs(model), alone))

    threads = [Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 150
    assert not any(wrong)
    assert torch.equal(outputs(model), on)


def test_a_model_without_a_head_of_its_own_nests_too() -> None:
    model = host()
    adapted(model, seeds=["bottleneck"], layers=["down"], budget=4.0)
    part = model.get_submodule("down")
    on, x = outputs(part, torch.ones(1, 8)), torch.ones(1, 8)
    with esper.disabled(part):
        with esper.disabled(model), esper.disabled(part):
            pass
        assert torch.equal(outputs(part, x), outputs(host().get_submodule("down"), x))
    assert torch.equal(outputs(part, x), on)


def begin(model: nn.Module, place: Path) -> Any:
    del place
    return adapted(model, name="third")


CHANGES: list[Callable[[nn.Module, Path], Any]] = [
    lambda model, place: esper.set_adapter(model, "default"),
    lambda model, place: esper.save_adapter(model, place / "new"),
    lambda model, place: esper.load_adapter(model, place / "saved", name="third"),
    lambda model, place: esper.merge(model),
    lambda model, place: esper.export_lora(model, place / "new"),
    lambda model, place: esper.adapter_report(model, loss_fn=loss_fn, holdout=batches(1)),
    begin,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_needs_the_adapter_waits_for_the_end(
    model: nn.Module, tmp_path: Path, change: Callable[[nn.Module, Path], Any]
) -> None:
    first = outputs(model)
    adapted(model, steps=12, name="second", rate=3e-2)
    second = outputs(model)
    esper.save_adapter(model, tmp_path / "saved")
    trained = [parameter.requires_grad for parameter in model.parameters()]
    with esper.disabled(model):
        with pytest.raises(LifecycleError, match="leave the block first"):
            change(model, tmp_path)
        assert torch.equal(outputs(model), outputs(host()))
    assert not (tmp_path / "new").exists()
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert torch.equal(outputs(model), second)
    esper.set_adapter(model, "default")
    assert torch.equal(outputs(model), first)


def test_a_plain_copy_of_the_host_alone_is_the_host(model: nn.Module) -> None:
    with esper.disabled(model):
        plain = esper.harden(model)
        with pytest.raises(LifecycleError, match="unwrap would lose its kernels"):
            esper.unwrap(model)
    assert torch.equal(outputs(plain), outputs(host()))


def saved_and_loaded(model: nn.Module) -> nn.Module:
    content = io.BytesIO()
    torch.save(model, content)
    content.seek(0)
    found: nn.Module = torch.load(content, weights_only=False)
    return found


@pytest.mark.parametrize("copy", [deepcopy, saved_and_loaded])
def test_a_copy_knows_its_adapters(model: nn.Module, copy: Any) -> None:
    names = [name for name, _ in model.named_modules()], list(model.state_dict())
    first = outputs(model)
    adapted(model, steps=12, name="second", rate=3e-2)
    second, twin = outputs(model), copy(model)
    assert esper.adapter_names(twin) == ["second", "default"]
    with esper.disabled(twin):
        assert torch.equal(outputs(twin), outputs(host()))
    esper.set_adapter(twin, "default")
    assert torch.equal(outputs(twin), first)
    assert torch.equal(outputs(model), second)
    assert ([name for name, _ in twin.named_modules()], list(twin.state_dict())) == names


def test_a_copy_of_the_host_alone_stays_it(model: nn.Module) -> None:
    on = outputs(model)
    with esper.disabled(model):
        twin = deepcopy(model)
    with esper.disabled(twin):
        pass
    assert torch.equal(outputs(twin), outputs(host()))
    assert torch.equal(outputs(model), on)


def test_a_merged_model_has_nothing_of_esper(model: nn.Module) -> None:
    content = io.BytesIO()
    torch.save(esper.merge(model), content)
    assert b"esper" not in content.getvalue()
