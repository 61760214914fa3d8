"""What a loss does to its batches, and what a holdout hands out."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError, KernelError
from tests.unit.services.small_run import Batch, SmallRun, batches, loss_fn, same, settings, teacher

# --- batches that hide what they hold -------------------------------------------------------------


class Store(dict[str, Tensor]):
    """Attributes of a `Graph`."""


class Graph:
    """A batch whose tensors lie below what a plain copy reaches, as in graph libraries."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.__dict__["_store"] = Holder(Store(x=x, y=y))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_store"].mapping[name]


class Holder:
    def __init__(self, mapping: Store) -> None:
        self.mapping = mapping


def test_a_batch_that_a_plain_copy_does_not_protect_is_copied_whole() -> None:
    def normalising(model: nn.Module, graph: Graph) -> Tensor:
        graph.x.sub_(1.0)
        return loss_fn(model, (graph.x, graph._store.mapping.pop("y")))

    holdout = [Graph(x, y) for x, y in batches(teacher(96, seed=2))]
    kept = [graph.x.clone() for graph in holdout]
    run = SmallRun(options={"holdout": holdout, "loss_fn": normalising})
    losses = [run.engine.on_epoch_end(number).holdout_loss for number in range(2)]
    assert losses[0] == losses[1]
    assert all(torch.equal(graph.x, x) for graph, x in zip(holdout, kept, strict=True))


class Record:
    """A batch that moves and scales its tensors when it goes to a device."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: str) -> "Record":
        self.x = self.x.to(device) / 2
        return self


def test_a_record_that_changes_on_its_way_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def moving(model: nn.Module, batch: Record) -> Tensor:
        batch = batch.to("cpu")
        return loss_fn(model, (batch.x, batch.y))

    holdout = [Record(x, y) for x, y in batches(teacher(96, seed=2))]
    kept = [record.x for record in holdout]
    run = SmallRun(options={"holdout": holdout, "loss_fn": moving})
    assert "loss_fn writes into its batch" in caplog.text
    assert run.engine.on_epoch_end(0).holdout_loss == run.engine.on_epoch_end(1).holdout_loss
    assert all(record.x is x for record, x in zip(holdout, kept, strict=True))


def test_a_function_that_writes_past_autograd_changes_no_holdout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def writing(model: nn.Module, batch: Batch) -> Tensor:
        batch[0].data.sub_(3.0)
        batch[0].numpy()[:] /= 2.0
        return loss_fn(model, batch)

    run = SmallRun(grown=False)
    kept = [x.clone() for x, _ in run.holdout]
    model = esper.wrap(run.model, ["fc1"])
    tamiyo = esper.Tamiyo(model, run.optimizer, loss_fn=writing, holdout=run.holdout)
    tamiyo.on_epoch_end(0)
    assert "loss_fn writes into" in caplog.text
    assert all(torch.equal(x, k) for (x, _), k in zip(run.holdout, kept, strict=True))


def test_a_loss_with_gradients_of_its_own_trains_kernels() -> None:
    def penalised(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            y = model(x)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return F.mse_loss(y, batch[1], reduction="none").mean(1) + 0.01 * slope.square().sum(1)

    run = SmallRun(config=settings(train_epochs=50), loss_fn=penalised).run(4)
    assert same(run.state(), SmallRun(grown=False, loss_fn=penalised).run(4).state())
    assert all(graft.trained for graft in run.engine.grafts.grafts)

    def without(model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0].square().sum(1)

    with pytest.raises(KernelError, match=r"gradients inside `with torch\.enable_grad\(\):`"):
        SmallRun(loss_fn=without)


class Spent(IterableDataset[Any]):
    """A stream that is opened once."""

    def __init__(self, batches: list[Batch]) -> None:
        self.stream = iter(batches)

    @override
    def __iter__(self) -> Any:
        return self.stream


@pytest.mark.parametrize("loaded", [False, True])
def test_a_stream_that_is_read_only_once_is_refused(*, loaded: bool) -> None:
    run = SmallRun(grown=False)
    stream = Spent(run.holdout)
    holdout = DataLoader(stream, batch_size=None) if loaded else stream
    with pytest.raises(ConfigError, match="holdout is an iterator and can be read only once"):
        SmallRun(options={"holdout": holdout})


class Moved:
    """Moves the batches of a loader, whose iterator draws a seed when it is made."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return ((x.float(), y) for x, y in self.loader)


def test_looking_at_a_holdout_draws_nothing() -> None:
    run = SmallRun(grown=False)
    model = esper.wrap(run.model, ["fc1"])
    holdout = Moved(DataLoader(TensorDataset(*run.train_part), 16))
    before = torch.get_rng_state()
    esper.Tamiyo(model, run.optimizer, loss_fn=loss_fn, holdout=holdout)
    assert torch.equal(torch.get_rng_state(), before)
