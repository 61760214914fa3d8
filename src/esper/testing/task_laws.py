"""Laws of tasks.

Subclass ``TaskLaws`` and give it a ``task``::

    class TestMine(TaskLaws):
        @pytest.fixture
        def task(self) -> Task:
            return Mine()
"""
# ruff: noqa: D102 (the name of a law is what it says)

import socket
from dataclasses import astuple, fields

import pytest
import torch
from torch import Tensor, nn

from esper.blueprints import BLUEPRINTS
from esper.execution.shapes import observe_shapes
from esper.execution.surgery import kasmina_layers, seeded_modules
from esper.tasks.base import Batch, Batches, Splits, Task
from esper.widths.wrap import wrap


def equal(one: Batch, other: Batch) -> bool:
    """True if inputs and targets are the same bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """True if two models have the same state, name by name and bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def joined(batches: Batches) -> Batch:
    """Examples of all batches, in order."""
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def examples(inputs: Tensor, targets: Tensor) -> list[tuple[bytes, bytes]]:
    """Examples as values that can be compared, sorted."""
    rows, labels = inputs.flatten(1).numpy(), targets.reshape(len(targets), -1).numpy()
    return sorted((row.tobytes(), label.tobytes()) for row, label in zip(rows, labels, strict=True))


def are_symbols(inputs: Tensor) -> bool:
    """True if inputs (N, T) are numbers of symbols, which are not normalised."""
    return not inputs.is_floating_point()


def train(task: Task, model: nn.Module, steps: int) -> None:
    """Take at most so many steps of epoch 0."""
    optimizer = task.optimizer(model)
    for _, batch in zip(range(steps), task.train_batches(0, 0), strict=False):
        optimizer.zero_grad()
        torch.autograd.backward(task.loss_fn(model, batch).mean())
        optimizer.step()


def mean_loss(task: Task, model: nn.Module) -> float:
    """Mean loss over the training part, in nats."""
    with torch.no_grad():
        return task.loss_fn(model, task.load().train).mean().item()


class TaskLaws:
    """Laws of every task; a subclass gives the fixture ``task``."""

    @pytest.fixture
    def task(self) -> Task:
        raise NotImplementedError("override the fixture 'task'")

    @pytest.fixture
    def splits(self, task: Task) -> Splits:
        return task.load()

    # Data

    def test_it_needs_no_network(self, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError("a task must not open a connection")

        monkeypatch.setattr(socket, "socket", refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        batch = tuple(part[:4] for part in task.read().train)
        assert task.loss_fn(task.host(0), (batch[0], batch[1])).shape == (4,)

    def test_data_are_the_same_whenever_they_are_read(self, task: Task, splits: Splits) -> None:
        torch.manual_seed(1)
        again = task.read()
        assert all(equal(getattr(again, f.name), getattr(splits, f.name)) for f in fields(splits))
        assert task.load() is splits

    def test_inputs_are_finite_floats_or_symbols_and_targets_class_numbers(
        self, splits: Splits
    ) -> None:
        for inputs, targets in astuple(splits):
            symbols = are_symbols(inputs)
            assert inputs.dtype == (torch.int64 if symbols else torch.float32)
            assert targets.dtype == torch.int64
            assert targets.shape in ((len(inputs),), *([inputs.shape] if symbols else []))
            assert inputs.isfinite().all()
            assert targets.min() == 0

    def test_no_example_is_in_two_parts(self, splits: Splits) -> None:
        parts = [{row for row, _ in examples(*part)} for part in astuple(splits)]
        assert len(set.union(*parts)) == sum(map(len, parts))

    def test_every_part_has_its_share_of_every_class(self, splits: Splits) -> None:
        classes = 1 + max(int(targets.max()) for _, targets in astuple(splits))
        counts = torch.stack(
            [targets.flatten().bincount(minlength=classes) for _, targets in astuple(splits)]
        ).double()
        expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
        # Several targets of one example go together, so they are shared out by chance.
        chance = 0 if splits.train[1].ndim == 1 else 6 * expected.sqrt()
        assert ((counts - expected).abs() <= 1 + 0.01 * counts.sum(0) + chance).all()

    def test_inputs_are_normalised_by_the_training_part(self, splits: Splits) -> None:
        if are_symbols(splits.train[0]):
            return
        deviation, mean = torch.std_mean(splits.train[0].double())
        assert abs(mean.item()) < 1e-4
        assert deviation.item() == pytest.approx(1, abs=1e-3)
        # Had the held-out parts been used too, their statistics would be as exact.
        assert abs(splits.validation[0].double().mean().item()) > 1e-5

    # Batches

    def test_every_training_example_comes_once_in_an_epoch(
        self, task: Task, splits: Splits
    ) -> None:
        batches = task.train_batches(0, 0)
        inputs, targets = joined(batches)
        assert [len(y) for _, y in batches][:-1] == [task.batch_size] * (len(batches) - 1)

        assert examples(inputs, targets) == examples(*splits.train)

    def test_order_depends_on_seed_and_epoch_alone(self, task: Task) -> None:
        batches = task.train_batches(3, 7)
        first = joined(batches)
        torch.manual_seed(99)
        assert equal(joined(batches), first)
        assert equal(joined(task.train_batches(3, 7)), first)
        for epoch, seed in ((4, 7), (3, 8), (7, 3)):
            assert not equal(joined(task.train_batches(epoch, seed)), first)

    def test_held_out_batches_can_be_read_again(self, task: Task, splits: Splits) -> None:
        for batches, part in (
            (task.validation_batches(), splits.validation),
            (task.test_batches(), splits.test),
        ):
            assert equal(joined(batches), part)
            assert equal(joined(batches), part)
            assert len(list(batches)) == len(batches)

    # Host

    def test_same_seed_same_host(self, task: Task) -> None:
        host = task.host(5)
        torch.manual_seed(99)
        assert same_weights(task.host(5), host)
        assert not same_weights(task.host(6), host)

    def test_torchs_random_state_is_untouched(self, task: Task) -> None:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        task.read()
        model = task.host(5)
        joined(task.train_batches(0, 0))
        task.loss_fn(model, next(iter(task.validation_batches())))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_wider_host_has_the_same_layers_and_more_parameters(self, task: Task) -> None:
        host, wide = task.host(0), task.host(0, width=2 * task.width)
        assert [name for name, _ in wide.named_modules()] == [n for n, _ in host.named_modules()]
        sizes = [sum(p.numel() for p in model.parameters()) for model in (host, wide)]
        assert sizes[0] < sizes[1]

    def test_every_seed_fits_every_layer_within_the_budget(
        self, task: Task, splits: Splits
    ) -> None:
        assert len(set(task.layers)) == len(task.layers)
        assert task.layers or task.widen
        batch = (splits.train[0][:4], splits.train[1][:4])
        given = {"widen": task.widen, "example": batch, "loss_fn": task.loss_fn}
        model = wrap(task.host(0), task.layers, task.seeds, **given)  # type: ignore[arg-type]
        observe_shapes(model, kasmina_layers(model), loss_fn=task.loss_fn, batch=batch)
        for site in seeded_modules(model).values():
            assert site.spec is not None
            for seed in site.seed_blueprints:
                BLUEPRINTS.create(seed).build(site.spec, budget=task.default_budget // 8, seed=0)

    # Training

    def test_losses_and_accuracies_are_per_example(self, task: Task) -> None:
        # In evaluation mode: batch norm makes an example depend on its batch.
        model, batch = task.host(0).eval(), next(iter(task.train_batches(0, 0)))
        losses, hits = task.loss_fn(model, batch), task.accuracy_fn(model, batch)
        assert losses.shape == hits.shape == (task.batch_size,)
        assert losses.requires_grad
        assert hits.is_floating_point()
        assert ((hits >= 0) & (hits <= 1)).all()
        assert batch[1].ndim > 1 or ((hits == 0) | (hits == 1)).all()
        # Each belongs to its own example: half a batch gives half of them.
        half = task.batch_size // 2
        front = task.loss_fn(model, (batch[0][:half], batch[1][:half]))
        torch.testing.assert_close(front, losses[:half])

    def test_a_new_host_guesses(self, task: Task, splits: Splits) -> None:
        shares = splits.train[1].flatten().bincount() / splits.train[1].numel()
        # Several: where features are known, a head can hit upon a class or two by chance.
        hosts = [task.host(seed) for seed in range(4)]
        with torch.no_grad():
            hits = torch.stack([task.accuracy_fn(host, splits.validation) for host in hosts])
        assert hits.mean().item() < max(3 / len(shares), 1.5 * shares.max().item())

    def test_an_epoch_of_training_lowers_the_loss(self, task: Task) -> None:
        model = task.host(0)
        before = mean_loss(task, model)
        train(task, model, len(task.train_batches(0, 0)))
        assert mean_loss(task, model) < before - 0.02

    def test_training_is_repeatable(self, task: Task) -> None:
        one, other = task.host(0), task.host(0)
        train(task, one, 5)
        train(task, other, 5)
        assert same_weights(one, other)
