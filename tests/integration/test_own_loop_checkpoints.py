"""A checkpoint taken between any two epochs: the continuation is the uninterrupted run, exactly."""

import io
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState
from esper.services.tamiyo.settings import config_from
from esper.stores.memory import MemoryStore
from tests.unit.services.small_run import (
    BATCHES_PER_EPOCH,
    CULLED,
    KEPT,
    SEEDS,
    SmallRun,
    host,
    same,
)

EPOCHS = 16
CONFIG = config_from(
    {
        "growth": {
            "budget": 400,
            "plateau_threshold": 1.0,
            "probe_every": 7,
            "max_active": 2,
        },
        "seed_selection": {"constraints": {"min_dormant_epochs": 3}},
    }
)


def fade(optimizer: Optimizer) -> Any:
    return LambdaLR(optimizer, lambda epoch: 0.97**epoch)


def a_run(**options: Any) -> SmallRun:
    return SmallRun(
        config=options.pop("config", CONFIG),
        make_scheduler=options.pop("make_scheduler", fade),
        make_optimizer=options.pop("make_optimizer", lambda m: Adam(m.parameters(), lr=0.02)),
        worth=(KEPT, CULLED, CULLED, CULLED),  # so that some are culled though seeds audition
        options=options,
    )


def saved(run: SmallRun) -> bytes:
    """What a user's own checkpoint holds, as a file."""
    file = io.BytesIO()
    tree = {
        "model": run.model.state_dict(),
        "tamiyo": run.engine.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(tree, file)
    return file.getvalue()


def restore(run: SmallRun, checkpoint: bytes) -> SmallRun:
    tree = torch.load(io.BytesIO(checkpoint), weights_only=True)
    run.model.load_state_dict(tree["model"])
    run.engine.load_state_dict(tree["tamiyo"])
    run.optimizer.load_state_dict(tree["optimizer"])
    run.scheduler.load_state_dict(tree["scheduler"])
    torch.set_rng_state(tree["random"])
    return run


def everything(run: SmallRun) -> dict[str, Any]:
    """All that can be compared at the end of an epoch, and what the epoch said."""
    return {
        "losses": run.losses[-BATCHES_PER_EPOCH:],
        "model": deepcopy(dict(run.model.state_dict())),
        "optimizer": deepcopy(run.optimizer.state_dict()),
        "rates": list(run.scheduler.get_last_lr()),
        "random": torch.get_rng_state(),
        "report": str(run.reports[-1]) if run.reports else "",
        "selector": deepcopy(run.engine.selector.state_dict()),
        # The history travels too: what was learnt before is not learnt again.
        "history": run.facts("decision", "outcome", "failure", "graft"),
    }


@dataclass(frozen=True)
class Trail:
    """A run that nothing interrupted: as it was before the first epoch, and after each."""

    checkpoints: list[bytes]
    states: list[dict[str, Any]]


def trail(epochs: int, **options: Any) -> Trail:
    run = a_run(**options)
    found = Trail([saved(run)], [everything(run)])
    for epoch in range(epochs):
        run.epoch(epoch)
        found.checkpoints.append(saved(run))
        found.states.append(everything(run))
    return found


@pytest.fixture(scope="module")
def uninterrupted() -> Trail:
    return trail(EPOCHS)


@pytest.mark.trains
def test_the_boundaries_see_every_state_that_lasts(uninterrupted: Trail) -> None:
    seen = set()
    for checkpoint in uninterrupted.checkpoints:
        run = restore(a_run(), checkpoint)
        seen |= {str(s) for layer in run.engine.layers.values() for s in layer.seed_states}
    assert seen == {"dormant", "training", "blending", "fossilized", "culled"}


@pytest.mark.parametrize("boundary", range(EPOCHS))
def test_continuing_from_any_boundary_is_exact(boundary: int, uninterrupted: Trail) -> None:
    resumed = restore(a_run(), uninterrupted.checkpoints[boundary])
    for epoch in range(boundary, min(boundary + 2, EPOCHS)):
        resumed.epoch(epoch)
        ours, theirs = everything(resumed), uninterrupted.states[epoch + 1]
        for name in theirs:
            assert same(ours[name], theirs[name]), f"{name} differs after epoch {epoch}"


def test_a_stored_run_that_is_taken_up_again_leaves_one_log(tmp_path: Path) -> None:
    whole = a_run(store=f"sqlite:///{tmp_path}/whole.db", run="night").run(11)
    broken = a_run(store=f"sqlite:///{tmp_path}/broken.db", run="night").run(6)
    checkpoint = saved(broken)
    broken.run(9, first=6)  # three more epochs, which the checkpoint does not know
    broken.engine.close()
    again = restore(a_run(store=f"sqlite:///{tmp_path}/broken.db", run="night"), checkpoint)
    again.run(11, first=6)
    wanted = {event.op_id: event for event in whole.events()}
    found = {event.op_id: event for event in again.events()}
    stale = {found[name].kind for name in found.keys() - wanted.keys()}
    assert stale == {"end", "withdrawal"}  # what the run told when it was closed, and then taken up
    assert {name: found[name] for name in wanted} == wanted
    assert same(dict(again.model.state_dict()), dict(whole.model.state_dict()))
    for run in (whole, again):
        run.engine.close()


def test_a_run_without_a_name_of_its_own_goes_on_under_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path}/history.db"
    first = a_run(store=url).run(7)
    checkpoint = saved(first)
    first.run(9, first=7)
    second = restore(a_run(store=url), checkpoint)
    assert second.engine.tracker.events.run == first.engine.tracker.events.run
    second.run(9, first=7)
    assert second.facts() == first.facts()
    fork = restore(a_run(store=url, run="a variant"), checkpoint).run(9, first=7)
    assert fork.engine.tracker.events.run == "a variant"
    assert {event.run for event in fork.events()} == {"a variant"}
    first.engine.close()  # another engine of this process goes on with its run
    assert "events are not stored: another writer of this process goes on" in caplog.text
    for run in (second, fork):
        run.engine.close()


@pytest.mark.trains
@pytest.mark.parametrize("strategy", ["auto", "exp3"])
def test_what_was_learnt_from_another_run_is_learnt_again_in_its_order(strategy: str) -> None:
    selection = CONFIG.seed_selection.model_copy(update={"strategy": strategy})
    config = CONFIG.model_copy(update={"seed_selection": selection})

    def run(store: MemoryStore, name: str, seeds: tuple[str, ...] = SEEDS) -> SmallRun:
        options = {"store": store, "run": name, "scope": "model"}
        worth = (KEPT, CULLED, 0.03)
        return SmallRun(
            config=config, worth=worth, seeds=seeds, make_scheduler=fade, options=options
        )

    store = MemoryStore()
    before = run(store, "before", SEEDS[::-1]).run(8)
    whole = run(store, "night").run(5)
    before.run(12, first=8)
    whole.run(9, first=5)
    checkpoint = saved(whole)
    whole.run(14, first=9)

    again = run(MemoryStore(), "night")  # as in another process, where nothing is in memory
    restore(again, checkpoint).run(14, first=9)
    kinds = ("decision", "outcome", "failure", "withdrawal", "graft")
    assert again.facts(*kinds) == whole.facts(*kinds)
    assert len(whole.facts("outcome")) > 4


def test_a_history_that_was_lost_does_not_stop_the_resumed_run(tmp_path: Path) -> None:
    first = a_run(store=f"sqlite:///{tmp_path}/lost.db").run(4)
    assert {graft.state for graft in first.engine.grafts.grafts} == {
        SeedState.TRAINING,
        SeedState.BLENDING,
    }
    checkpoint = saved(first)
    first.engine.close()
    again = restore(a_run(store=f"sqlite:///{tmp_path}/other.db"), checkpoint).run(8, first=4)
    assert len(again.facts("graft")) >= 2
    assert len(again.facts("outcome")) == len(again.facts("graft"))
    again.engine.close()


OTHERS: dict[str, dict[str, Any]] = {
    "sgd": {"make_optimizer": lambda m: SGD(m.parameters(), lr=0.02, momentum=0.9)},
    "named-fused-adamw": {
        "make_optimizer": lambda m: AdamW(m.named_parameters(), lr=0.02, fused=True)
    },
    "one-cycle": {"make_scheduler": lambda o: OneCycleLR(o, max_lr=0.05, total_steps=EPOCHS)},
}


@cache
def other(name: str) -> Trail:
    return trail(9, **OTHERS[name])


@pytest.mark.trains
@pytest.mark.parametrize("boundary", [3, 4, 6])
@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_and_schedulers_continue_exactly(name: str, boundary: int) -> None:
    resumed = restore(a_run(**OTHERS[name]), other(name).checkpoints[boundary])
    resumed.run(boundary + 3, first=boundary)
    assert same(everything(resumed), other(name).states[boundary + 3])


def test_rent_on_latency_is_charged_after_a_resume_too() -> None:
    config = CONFIG.model_copy(
        update={"reward": CONFIG.reward.model_copy(update={"rent_per_ms": 1e-9})}
    )
    run = a_run(config=config).run(4)
    resumed = restore(a_run(config=config), saved(run)).run(8, first=4)
    assert len(resumed.facts("outcome")) >= 2


def test_an_optimizer_over_other_parameters_is_refused() -> None:
    checkpoint = saved(a_run().run(4))
    other = a_run(make_optimizer=lambda m: Adam(list(m.parameters())[::-1], lr=0.02))
    with pytest.raises(ConfigError, match="parameter groups are not those of the checkpoint"):
        restore(other, checkpoint)


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(key) in (str, int) and plain(item) for key, item in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return type(value) in (str, int, float, bool, type(None), torch.Tensor)

    state = a_run().run(5).engine.state_dict()
    assert plain(state)
    assert state["grafts"]["grafts"]


def test_a_model_without_batch_norm_and_short_epochs_continues_exactly() -> None:
    def short(run: SmallRun, first: int, last: int) -> SmallRun:
        for epoch in range(first, last):
            for batch in list(run.train_batches())[:3]:  # fewer than calibration looks back
                run.step(batch)
            run.reports.append(run.engine.on_epoch_end(epoch))
            run.scheduler.step()
        return run

    for restless in (False, True):
        given: dict[str, Any] = {"config": CONFIG, "make_scheduler": fade}
        whole = short(SmallRun(model=host(restless=restless), **given), 0, 4)
        checkpoint = saved(whole)
        short(whole, 4, 8)
        fresh = restore(SmallRun(model=host(restless=restless), **given), checkpoint)
        assert short(fresh, 4, 8).facts("graft") == whole.facts("graft")
        assert whole.facts("graft")
        assert same(dict(fresh.model.state_dict()), dict(whole.model.state_dict()))


@pytest.mark.parametrize(("every", "probe_every"), [(None, 2), (None, 50), (7, 2)])
def test_a_checkpoint_in_the_middle_of_an_epoch_continues_exactly(
    every: int | None, probe_every: int
) -> None:
    """Batches fall into epochs as they would have, and what was read of the layers is not lost."""
    config = config_from(
        {"growth": CONFIG.growth.model_dump() | {"every": every, "probe_every": 2}}
    )
    batches = [batch for _ in range(10) for batch in a_run().train_batches()]

    def fresh() -> SmallRun:
        return SmallRun(model=host(restless=False), config=config, make_scheduler=fade)

    def train(run: SmallRun, first: int, last: int) -> SmallRun:
        for number in range(first, last):
            if every is None and number % BATCHES_PER_EPOCH == 0 and number:
                run.reports.append(run.engine.on_evaluation())
            run.step(batches[number])
        return run

    whole = train(fresh(), 0, len(batches))
    seen = set()
    for stop in (*range(9, len(batches), 11), *([24, 42] if every is None else [])):
        first = train(fresh(), 0, stop)
        seen |= {str(s) for layer in first.engine.layers.values() for s in layer.seed_states}
        again = train(restore(fresh(), saved(first)), stop, len(batches))
        for kind in ("decision", "graft", "health"):
            assert again.facts(kind)[-3:] == whole.facts(kind)[-3:]
        assert same(dict(again.model.state_dict()), dict(whole.model.state_dict()))
    assert {"training", "blending"} <= seen
