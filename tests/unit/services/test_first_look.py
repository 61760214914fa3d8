"""First look of a kernel at what it will read, alone and beside a process that reads nothing."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F

import esper
from esper.contracts.seeds import LayerSpec
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Kernel, Recipe
from esper.execution.replicas.replicas import ALONE, Replicas
from esper.services.tamiyo.growth.first_look import look

Batch = tuple[Tensor, Tensor]


def drawn(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(40, 1, generator=generator)
    return 3.0 + 2 * common + torch.randn(40, 6, generator=generator), torch.zeros(40).long()


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def without_layer(_: nn.Module, batch: Batch) -> Tensor:
    return batch[0].sum(dim=1)


def grown(blueprint: str) -> tuple[nn.Module, KasminaLayer]:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    model = esper.wrap(host, ["0"], [blueprint])
    layer = cast("KasminaLayer", model.get_submodule("0"))
    spec = LayerSpec(kind="features", in_size=6, out_size=5)
    recipe = Recipe(blueprint=blueprint, spec=spec, budget=60, seed=0)
    layer.load_kernel(0, Kernel(module=recipe.build(), kernel_id="k", recipe=recipe))
    return model, layer


def down(layer: KasminaLayer) -> Tensor:
    return layer.seed(0).as_kernel().module.get_parameter("down.weight").detach().clone()


@pytest.mark.parametrize(("blueprint", "changes"), [("bottleneck", True), ("lora", False)])
def test_only_the_kernel_changes_and_only_if_its_blueprint_wants(
    blueprint: str, *, changes: bool
) -> None:
    model, layer = grown(blueprint)
    model.train()
    rows, state = down(layer), {k: v.clone() for k, v in model.state_dict().items()}
    state_of_draws = torch.get_rng_state()
    look(model, layer, 0, loss_fn=losses, batch=drawn())
    assert torch.equal(rows, down(layer)) is not changes
    assert torch.equal(state_of_draws, torch.get_rng_state())
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    assert all(".seeds.0." in name for name in moved)


def test_a_batch_that_does_not_reach_the_layer_changes_nothing() -> None:
    model, layer = grown("bottleneck")
    rows = down(layer)
    look(model, layer, 0, loss_fn=without_layer, batch=drawn())
    assert torch.equal(rows, down(layer))


@pytest.mark.parametrize("fails", [False, True])
def test_a_kernel_that_draws_or_fails_costs_nothing(
    caplog: pytest.LogCaptureFixture, *, fails: bool
) -> None:
    model, layer = grown("bottleneck")
    kernel = layer.seed(0).as_kernel().module

    def draw(_: nn.Module, __: object, y: Tensor) -> Tensor:
        if fails and not torch.is_grad_enabled():
            raise RuntimeError("no gradient is recorded")
        return y * (1 + torch.randn(1))

    kernel.register_forward_hook(draw)
    rows, state = down(layer), torch.get_rng_state()
    look(model, layer, 0, loss_fn=losses, batch=drawn())
    assert torch.equal(rows, down(layer)) is fails
    assert torch.equal(torch.get_rng_state(), state)
    assert ("begins as it was drawn" in caplog.text) is fails


def in_one_of_two(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model, layer = grown("bottleneck")
    replicas: Any = Replicas()
    function = losses if rank == 1 else without_layer
    look(model, layer, 0, loss_fn=function, batch=drawn(), replicas=replicas)
    torch.save(down(layer), folder / f"{rank}.pt")
    rows = replicas.rows(torch.full((rank + 1, 2), float(rank)))
    assert rows.tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    assert replicas.own_or_lent(None, rows) is None
    distributed.destroy_process_group()


@pytest.mark.dist
def test_a_process_whose_batch_does_not_reach_the_layer_sees_the_others(tmp_path: Path) -> None:
    multiprocessing.spawn(in_one_of_two, (tmp_path,), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
    model, layer = grown("bottleneck")
    look(model, layer, 0, loss_fn=losses, batch=drawn(), replicas=ALONE)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), down(layer))
