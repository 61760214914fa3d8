"""Kernels that cannot be built, losses that become NaN, wrong calls: nothing is lost."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam
from typing_extensions import override

import esper
from esper.blueprints import BLUEPRINTS
from esper.blueprints.base import Blueprint
from esper.contracts.errors import ConfigError, KernelError
from esper.contracts.events import Event
from esper.contracts.seeds import LayerSpec, SeedState
from esper.stores.payload import encode
from tests.unit.services.small_run import (
    BATCHES_PER_EPOCH,
    KEPT,
    Batch,
    SmallRun,
    host,
    loss_fn,
    same,
    settings,
    teacher,
)

pytestmark = pytest.mark.trains

# --- kernels that cannot be built, run or loaded --------------------------------------------------


class _Faulty(Blueprint):
    """A blueprint of somebody's that looks right until it is used."""

    description = "a mistake"
    kinds: ClassVar[tuple[str, ...]] = ("features",)
    born_zero: ClassVar[tuple[str, ...]] = ("last",)
    fixed_size = True


@final
@dataclass(frozen=True)
class RaisesWhenBuilt(_Faulty):
    name = "raises_when_built"
    calls: ClassVar[list[int]] = []

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        self.calls.append(width)
        if len(self.calls) > 4:  # the first calls only ask for its size
            raise RuntimeError("no such operator")
        return _Linear(spec.in_size, spec.out_size)


@final
@dataclass(frozen=True)
class WrongShape(_Faulty):
    name = "wrong_shape"

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return _Linear(spec.in_size, spec.out_size + 1)


@final
@dataclass(frozen=True)
class RaisesWhenRun(_Faulty):
    name = "raises_when_run"

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return _Linear(spec.in_size + 1, spec.out_size)


@final
@dataclass(frozen=True)
class RaisesInTraining(_Faulty):
    name = "raises_in_training"

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return _Picky(spec.in_size, spec.out_size)


class _Linear(nn.Module):
    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.last = nn.Linear(in_size, out_size)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(x)
        return y


class _Picky(_Linear):
    @override
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("cannot be differentiated")
        return super().forward(x)


@pytest.fixture(params=[RaisesWhenBuilt, WrongShape, RaisesWhenRun, RaisesInTraining])
def faulty(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a blueprint that fails, in the table for the time of one test."""
    kind: type[Blueprint] = request.param
    BLUEPRINTS.names()
    assert BLUEPRINTS._found is not None
    BLUEPRINTS._found[kind.name] = f"{__name__}:{kind.__name__}"
    RaisesWhenBuilt.calls.clear()
    yield kind.name
    del BLUEPRINTS._found[kind.name]


def test_a_kernel_that_fails_leaves_the_run_as_the_control(
    faulty: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = SmallRun(config=settings(), layers=("fc1",), seeds=[faulty]).run(5)
    control = SmallRun(grown=False).run(5)
    assert same(run.state(), control.state())
    failures = run.facts("failure")
    assert failures
    assert all(failure["blueprint"] == faulty for failure in failures)
    metrics = run.engine.tracker.get_layer_metrics("fc1")[0]
    assert metrics.failed_attempts == len(failures)
    assert metrics.successful_grafts == 0
    assert any(record.levelname == "WARNING" for record in caplog.records)
    # Its seed is free again: it is asked for once more, or refused with the reason.
    assert len(run.facts("decision", "refusal")) >= 2
    assert run.engine.used == sum(graft.parameters for graft in run.engine.grafts.grafts)


def test_other_seeds_grow_beside_one_that_fails(faulty: str) -> None:
    run = SmallRun(config=settings(), worth=[KEPT], layers=("fc1",), seeds=[faulty, "glu"])
    run.run(9)
    assert run.facts("failure")
    assert any(graft["kept"] for graft in run.facts("graft") if graft["blueprint"] == "glu")


def test_a_layer_that_refuses_does_not_keep_the_others_from_growing() -> None:
    rules = {"min_dormant_epochs": 50, "fallback_to_zero": False}
    run = SmallRun(
        config=settings(train_epochs=1, keep_stderrs=1e6, constraints=rules), seeds=["lowrank"]
    ).run(10)
    assert {data["layer"] for data in run.facts("decision")} == {"fc1", "fc2"}
    assert len(run.facts("decision")) == 2
    refusals = run.facts("refusal")
    assert refusals[-1]["error"] == "NoViableSeedError"
    assert "cools down until epoch" in run.reports[-1].reason
    assert len(run.reports) == 10


def test_a_layer_without_a_fitting_blueprint_is_skipped_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        run = SmallRun(seeds={"fc1": ["depthwise"], "fc2": ["glu"]}).run(6)
    assert "layer fc1 cannot grow: none of its seeds' blueprints, depthwise, fits it" in caplog.text
    assert {data["layer"] for data in run.facts("request")} == {"fc2"}
    assert "fc1 fits none of its blueprints" in run.reports[3].reason
    with pytest.raises(
        KernelError, match=r"layer 'fc1' cannot grow: none of its .* fits it .*; give"
    ):
        SmallRun(seeds=["depthwise"])


# --- NaN ------------------------------------------------------------------------------------------


def all_is_plain_json(events: list[Event]) -> bool:
    """Whether JSON can write every event; it has no NaN."""
    return all(encode(event.data) for event in events)


def test_a_kernel_that_becomes_nan_in_isolation_is_culled_before_it_is_blended() -> None:
    run = SmallRun(config=settings(train_epochs=2, max_active=1)).run(3)
    (graft,) = run.engine.grafts.grafts
    for p in graft.kernel.module.parameters():
        p.data.fill_(float("nan"))
    run.run(4, first=3)
    assert same(run.state(), SmallRun(grown=False).run(4).state())
    (verdict,) = run.reports[-1].verdicts
    assert (verdict.kept, verdict.reward) == (False, None)
    assert verdict.why == "its weights became NaN or infinite"
    (failure,) = run.facts("failure")
    assert failure["decision"] == graft.decision.decision_id
    assert run.run(9, first=4).facts("graft")[-1]["reward"] is not None
    assert all_is_plain_json(run.events())


def test_a_kernel_that_becomes_nan_while_it_blends_is_undone() -> None:
    run = SmallRun(config=settings(train_epochs=1, max_active=1)).run(3)
    (graft,) = run.engine.grafts.grafts
    assert graft.state is SeedState.BLENDING
    healthy = {n: t.clone() for n, t in run.model.state_dict().items() if ".host" in n}
    for p in graft.kernel.module.parameters():
        p.data.fill_(float("nan"))
    run.run(4, first=3)
    (verdict,) = run.reports[-1].verdicts
    assert not verdict.kept
    assert "the host was rolled back" in verdict.why
    assert run.facts("rollback")[0]["to_epoch"] == 2
    after = run.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in healthy.items())
    later = run.run(8, first=4).reports
    assert all(report.holdout_loss < 10 for report in later)
    assert all_is_plain_json(run.events())


def test_a_host_whose_loss_becomes_nan_stops_nothing() -> None:
    run = SmallRun(config=settings(train_epochs=3)).run(3)
    assert run.engine.grafts.grafts
    with torch.no_grad():
        run.model.get_submodule("norm").weight.fill_(float("nan"))  # type: ignore[operator]
    run.run(10, first=3)
    assert "nan" in str(run.reports[-1]).splitlines()[0]
    assert run.engine.grafts.grafts == []
    assert all(not verdict.kept for report in run.reports for verdict in report.verdicts)
    assert len(run.facts("epoch")) == 10
    assert run.facts("epoch")[-1]["holdout_loss"] is None
    assert not [data for data in run.facts("decision") if data["epoch"] >= 3]
    assert all_is_plain_json(run.events())


def test_a_loss_below_zero_grows_too() -> None:
    def shifted(model: nn.Module, batch: Batch) -> Tensor:
        return loss_fn(model, batch) - 20.0

    # What is held out decides nothing, so both train alike: gradients do not see the shift.
    config = settings(keep_stderrs=1e6, max_active=1)
    run = SmallRun(config=config, loss_fn=shifted).run(8)
    plain = SmallRun(config=config).run(8)
    assert all(report.holdout_loss < 0 for report in run.reports)
    assert len(run.facts("graft")) == 2
    for ours, theirs in zip(run.facts("graft"), plain.facts("graft"), strict=True):
        assert ours["kernel_id"] == theirs["kernel_id"]
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-4)
    kept = SmallRun(config=settings(), worth=[KEPT], loss_fn=shifted).run(8)
    assert any(graft["kept"] for graft in kept.facts("graft"))
    assert not kept.facts("rollback")


# --- wrong calls ----------------------------------------------------------------------------------


def test_an_unwrapped_model_is_an_error() -> None:
    model = host()
    with pytest.raises(ConfigError, match=r"no wrapped layers; call esper\.wrap"):
        esper.Tamiyo(model, Adam(model.parameters()), loss_fn=loss_fn, holdout=[teacher(8, seed=2)])


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (
            lambda model, batch: loss_fn(model, batch).mean(),
            "returned one number, as a mean of the batch",
        ),
        (lambda model, batch: loss_fn(model, batch)[:, None], r"returned \(32, 1\)"),
        (lambda model, batch: float(loss_fn(model, batch).sum()), "returned float"),
    ],
    ids=["scalar", "column", "number"],
)
def test_a_loss_that_is_not_per_example_is_an_error_at_once(wrong: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"{found}; it must return one loss per example"):
        SmallRun(loss_fn=wrong)


WRONG = [(torch.zeros(4, 5), torch.zeros(4, 3))]


def test_a_model_that_fails_on_the_holdout_is_left_as_it_was() -> None:
    model = host()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KernelError, match="the model fails on a batch of the holdout"):
        SmallRun(model=model, options={"holdout": WRONG})
    plain = esper.unwrap(model)
    assert same(dict(plain.state_dict()), before)


class Emptied:
    """Batches that are handed out once."""

    def __init__(self) -> None:
        self.left = iter([teacher(8, seed=2)])

    def __iter__(self) -> Iterator[Batch]:
        yield from self.left


@pytest.mark.parametrize(
    ("holdout", "found"),
    [
        (WRONG, r"fails on a batch of the holdout, tuple of \(4, 5\), \(4, 3\): mat1 and mat2"),
        (WRONG[0], r"fails on a batch of the holdout, Tensor of \(4, 5\): "),
        ("abc", "fails on a batch of the holdout, str: "),
        (None, "holdout is None, and cannot be iterated; give a list of batches"),
        (3, "holdout is 3, and cannot be iterated"),
        (Emptied(), "holdout is an iterator and can be read only once"),
        (iter(WRONG), "holdout is an iterator and can be read only once"),
    ],
    ids=["wide", "pair", "text", "none", "number", "emptied", "iterator"],
)
def test_a_holdout_of_a_width_that_is_none_is_an_error_at_once(holdout: Any, found: str) -> None:
    model = host()
    example = teacher(8, seed=2)
    esper.wrap(model, widen=["fc1"], example=example, loss_fn=loss_fn)
    optimizer = Adam(model.parameters())
    with pytest.raises((ConfigError, KernelError), match=found):
        esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=holdout)


def test_an_empty_holdout_is_an_error() -> None:
    with pytest.raises(ConfigError, match="holdout has no batches"):
        SmallRun(options={"holdout": []})


def test_an_epoch_cannot_end_twice() -> None:
    run = SmallRun().run(2)
    with pytest.raises(ConfigError, match=r"epoch 1 ended before: the last one was 1"):
        run.engine.on_epoch_end(1)
    ways_out = r"on_epoch_end\(2 \+ epoch\), or call on_evaluation\(\).* make another Tamiyo"
    for batch in run.train_batches():  # a whole epoch, whose number is wrong
        run.step(batch)
    with pytest.raises(ConfigError, match=r"epoch 0 ended before.* Go on counting, .*" + ways_out):
        run.engine.on_epoch_end(0)
    assert run.engine.progress.batches_of_epoch == BATCHES_PER_EPOCH
    run.run(4, first=2)  # and nothing has happened to it
    assert len(run.facts("epoch")) == 4


@pytest.mark.parametrize("as_given", [np.int64, torch.tensor])
def test_epochs_may_be_integers_of_other_libraries(as_given: Callable[[int], Any]) -> None:
    plain, other = SmallRun().run(4), SmallRun()
    for epoch in range(4):
        other.epoch(as_given(epoch))
    other.engine.state_dict()
    assert other.facts() == plain.facts()


@pytest.mark.parametrize("wrong", [1.5, "1", None, torch.tensor(1.5), torch.ones(2)])
def test_an_epoch_that_is_no_whole_number_is_refused(wrong: Any) -> None:
    run = SmallRun()
    with pytest.raises(ConfigError, match=r"^epoch is .*; it must be a whole number"):
        run.engine.on_epoch_end(wrong)
    assert run.run(1).facts("epoch")


def test_epochs_may_begin_anywhere_and_leave_gaps() -> None:
    run = SmallRun(config=settings(max_active=1))
    for epoch in (100, 101, 105, 106, 110, 111):
        run.epoch(epoch)
    graft = run.facts("graft")[0]
    assert (graft["began"], graft["epoch"]) == (101, 106)
