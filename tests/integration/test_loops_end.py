"""How a run ends, and what is told before it begins."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper.contracts.errors import ConfigError
from esper.stores import open_store
from tests.unit.services.small_run import SmallRun, loss_fn, settings


def short(**more: Any) -> SmallRun:
    """A run with one graft at a time, which begins at the end of epoch 1 and blends in epoch 3."""
    return SmallRun(config=settings(train_epochs=1, max_active=1), **more)


# --- how a run ends -------------------------------------------------------------------------------


def test_a_finished_run_leaves_no_choice_open_and_a_host_without_half_a_kernel() -> None:
    run = short().run(3)
    (graft,) = run.engine.grafts.grafts
    assert run.engine.layers[graft.layer.name].is_grown
    (verdict,) = run.engine.finish()
    assert (verdict.kept, verdict.reward, verdict.why) == (False, None, "the run ended")
    assert [data["decision"] for data in run.facts("withdrawal")] == [graft.decision.decision_id]
    assert not run.facts("failure", "outcome")
    assert (run.engine.used, len(run.optimizer.param_groups)) == (0, 1)
    assert run.engine.finish() == []


def test_after_its_end_a_run_only_measures() -> None:
    run = short().run(3)
    run.engine.finish()
    run.run(6, first=3)
    assert run.reports[-1].reason == "the run is finished"
    assert run.reports[-1].holdout_loss < run.reports[0].holdout_loss
    assert len(run.facts("decision")) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_a_block_is_the_end_of_the_run(tmp_path: Path, *, fails: bool) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    run = short(options={"store": url, "scope": "s"})
    try:
        with run.engine as tamiyo:
            assert tamiyo is run.engine
            run.run(3)
            if fails:
                raise BoomError
    except BoomError:
        assert fails
    with open_store(url) as store:
        kinds = [event.kind for _, event in store.read(scope="s")]
    assert kinds.count("decision") == kinds.count("withdrawal") == 1


class BoomError(Exception):
    """The user's own."""


def test_a_block_leaves_the_log_of_a_run_in_memory_to_be_read() -> None:
    run = short()
    with run.engine:
        run.run(3)
    assert len(run.facts("epoch")) == 3


def test_evaluations_count_for_a_loop_without_epochs() -> None:
    by_epoch = short().run(6)
    by_step = short()
    for _ in range(6):
        for batch in by_step.train_batches():
            by_step.step(batch)
        by_step.reports.append(by_step.engine.on_evaluation())
    assert [r.epoch for r in by_step.reports] == list(range(6))
    assert by_step.facts() == by_epoch.facts()


@pytest.mark.parametrize("saved", [False, True], ids=["lost", "lost and saved"])
@pytest.mark.parametrize(("epochs", "alpha"), [(2, None), (3, 0.5)])
def test_kernels_that_a_lost_engine_left_behind_are_dropped_or_named(
    caplog: pytest.LogCaptureFixture, epochs: int, alpha: float | None, *, saved: bool
) -> None:
    run = short().run(epochs)
    for batch in [] if alpha is None else list(run.train_batches())[:3]:
        run.step(batch)
    (graft,) = run.engine.grafts.grafts
    name, seed = graft.layer.name, graft.decision.seed_idx
    begun, ended = ("training", "culled") if alpha is None else ("blending", "blending")
    del graft, run.tamiyo
    if saved:
        file = io.BytesIO()
        torch.save(run.model, file)
        file.seek(0)
        run.model = torch.load(file, weights_only=False)
    run.optimizer = run.make_optimizer(run.model)
    run.tamiyo = run._tamiyo()
    layer = run.engine.layers[name]
    assert layer.seed_states[seed] == begun, "its state may still be loaded"
    run.step(next(run.train_batches()))
    assert layer.seed_states[seed] == ended
    (told,) = [line for line in caplog.messages if "gone without finish()" in line]
    assert told.startswith(f"layer {name}: the kernel of seed {seed} is")
    assert ("it is dropped" in told) == (alpha is None)
    assert (f"stays at alpha 0.50 and trains with the model. layer.unload({seed})" in told) == (
        alpha is not None
    )
    later = run.run(6).facts("decision", "graft")
    assert later
    assert caplog.text.count("gone without finish()") == 1


# --- what is told early ---------------------------------------------------------------------------


def test_one_model_has_one_engine() -> None:
    run = SmallRun().run(1)
    options: dict[str, Any] = {"loss_fn": loss_fn, "holdout": run.holdout}
    with pytest.raises(ConfigError, match=r"layer 'fc1' grows under another Tamiyo.*finish\(\)"):
        esper.Tamiyo(run.model, run.optimizer, **options)
    run.run(3, first=1)  # and nothing has happened to the first
    run.engine.finish()
    second = esper.Tamiyo(run.model, run.optimizer, **options)
    assert second.on_epoch_end(0).holdout_loss < run.reports[0].holdout_loss
    del second
    esper.Tamiyo(run.model, run.optimizer, **options)  # one that nobody holds owns nothing


@pytest.mark.parametrize("again", [False, True], ids=["same objects", "same memory"])
def test_a_holdout_that_is_trained_on_is_named_once(
    caplog: pytest.LogCaptureFixture, *, again: bool
) -> None:
    run = SmallRun(options={})
    part = run.holdout
    with caplog.at_level(logging.WARNING):
        for x, y in part * 2:
            run.step((x[:], y[:]) if again else (x, y))
    told = [r for r in caplog.records if "a batch that is trained on" in r.getMessage()]
    assert len(told) == 1


def test_a_holdout_of_its_own_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SmallRun().run(2)
    assert "trained on" not in caplog.text
