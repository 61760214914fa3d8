"""Runs: how one begins, stops, goes on and ends, and what it leaves behind."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

import esper
from esper.stores import open_store
from tests.loops.situations import holds, refused, works
from tests.loops.trial import HOLDOUT, SOON, TRAIN, Engine, Net, Trial, adam, loss_fn


def epoch(model: nn.Module, optimizer: Any, tamiyo: Engine, number: int) -> float:
    model.train()
    for batch in TRAIN:
        optimizer.zero_grad()
        loss_fn(model, batch).mean().backward()
        optimizer.step()
        tamiyo.on_batch_end(batch)
    return tamiyo.on_epoch_end(number)


def held_out(model: nn.Module) -> float:
    with torch.no_grad():
        return float(torch.cat([loss_fn(model.eval(), batch) for batch in HOLDOUT]).mean())


def trained(model: nn.Module, optimizer: Any) -> bool:
    """Whether the optimizer holds every parameter that the model shows, once."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    return sorted(held) == sorted(id(p) for p in model.parameters())


@works
def best_epoch_restored(trial: Trial) -> None:
    """The best epoch is restored at the end, and training goes on from there."""
    model = trial.wrap(Net())
    optimizer, best, state = adam(model), float("inf"), {}
    tamiyo = trial.tamiyo(model, optimizer)
    for number in range(6):
        epoch(model, optimizer, tamiyo, number)
        loss = held_out(model)
        if loss < best:
            best, state = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    assert held_out(model) == best
    epoch(model, optimizer, tamiyo, 6)
    assert trained(model, optimizer)


@works
def average_swapped_in(trial: Trial) -> None:
    """The averaged weights are swapped in for each evaluation, and out again."""
    model = trial.wrap(Net())
    optimizer, ema = adam(model), AveragedModel(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for number in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            ema.update_parameters(model)
            tamiyo.on_batch_end(batch)
        kept = copy.deepcopy(model.state_dict())
        model.load_state_dict(ema.module.state_dict())
        held_out(model)
        model.load_state_dict(kept)
        tamiyo.on_epoch_end(number)
        assert trained(model, optimizer)


@holds
def resumed(trial: Trial) -> None:
    """A run is stopped, and resumed from a checkpoint on disk: it goes on to the last digit."""

    def fresh() -> tuple[Any, Any, Engine]:
        trial.seed()
        model = trial.wrap(Net(nn.Dropout(0.2)))
        optimizer = adam(model)
        return model, optimizer, trial.tamiyo(model, optimizer)

    whole = fresh()
    losses = [epoch(*whole, number) for number in range(6)]
    first = fresh()
    for number in range(3):
        epoch(*first, number)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        model, optimizer, tamiyo = first
        state = {
            "model": model.state_dict(),
            "tamiyo": tamiyo.made.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        torch.save(state, path)
        state = torch.load(path)
    model, optimizer, tamiyo = second = fresh()
    model.load_state_dict(state["model"])
    tamiyo.made.load_state_dict(state["tamiyo"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    assert [epoch(*second, number) for number in range(3, 6)] == losses[3:]
    assert tamiyo.verdicts == whole[2].verdicts


@holds
def rolled_back(trial: Trial) -> None:
    """Model, Tamiyo and optimizer are set back to a checkpoint in mid-run, in the same process."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    parts: list[Any] = [model, tamiyo.made, optimizer]
    saved, losses = [], []
    for number in range(6):
        losses.append(epoch(model, optimizer, tamiyo, number))
        saved.append(copy.deepcopy([part.state_dict() for part in parts]))
    for at in (4, 1, 2):
        for part, state in zip(parts, saved[at], strict=True):
            part.load_state_dict(copy.deepcopy(state))
        again = [epoch(model, optimizer, tamiyo, number) for number in range(at + 1, 6)]
        assert again == losses[at + 1 :]
        assert trained(model, optimizer)


@works
def parameters_replaced(trial: Trial) -> None:
    """`load_state_dict(..., assign=True)` replaces all parameters, and a new optimizer is made."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for number in range(8):
        epoch(model, optimizer, tamiyo, number)
        assert trained(model, optimizer)
        if number == 4:
            model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
            optimizer = adam(model)


@works
def vector_of_parameters(trial: Trial) -> None:
    """All parameters are logged as one vector after each epoch: `parameters_to_vector(...)`."""
    model = trial.wrap(Net())
    optimizer, vectors = adam(model), []
    tamiyo = trial.tamiyo(model, optimizer)
    for number in trial.epochs:
        epoch(model, optimizer, tamiyo, number)
        vectors.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert all(vector.isfinite().all() for vector in vectors)


@holds
def exception_and_restart(trial: Trial) -> None:
    """The loop fails in mid-run; after `finish()` another Tamiyo takes the model, as it is."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    try:
        for number in range(3):
            epoch(model, optimizer, tamiyo, number)
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        tamiyo.finish()
    assert trained(model, optimizer)
    again = trial.tamiyo(model, optimizer)
    for number in trial.epochs:
        epoch(model, optimizer, again, number)
    assert [verdict.reward for verdict in again.verdicts if verdict.reward is not None]


@holds
def finished(trial: Trial) -> None:
    """`finish()` ends the run while a kernel is blended in: it goes, and the host trains on."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for number in range(3):
        epoch(model, optimizer, tamiyo, number)
    assert tamiyo.blended
    tamiyo.finish()
    assert not tamiyo.blended
    assert [verdict.why for verdict in tamiyo.verdicts] == ["the run ended"]
    for number in range(3, 6):
        epoch(model, optimizer, tamiyo, number)
    assert not tamiyo.blended
    assert trained(model, optimizer)


@works
def with_block(trial: Trial) -> None:
    """The run is a block, `with esper.Tamiyo(...) as tamiyo:`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    with trial.tamiyo(model, optimizer) as tamiyo:
        for number in trial.epochs:
            epoch(model, optimizer, tamiyo, number)
    assert not trial.grown or not tamiyo.made.grafts.grafts


@holds
def several_runs_in_one_store(trial: Trial) -> None:
    """Several runs write into one store, one after the other, and each learns from those before."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/history.db"
        outcomes = []
        for number in range(3):
            torch.manual_seed(number)
            model = trial.wrap(Net())
            optimizer = adam(model)
            with trial.tamiyo(model, optimizer, store=url, scope="net", run=f"{number}") as tamiyo:
                for at in trial.epochs:
                    epoch(model, optimizer, tamiyo, at)
                records = tamiyo.made.tracker.get_layer_metrics("fc1").values()
                outcomes.append(sum(metrics.total_outcomes for metrics in records))
        with open_store(url) as store:
            kinds = [event.kind for _, event in store.read(scope="net")]
    assert outcomes == sorted(set(outcomes))
    ends = kinds.count("outcome") + kinds.count("withdrawal") + kinds.count("failure")
    assert kinds.count("decision") == ends


@works
def two_runs_at_once(trial: Trial) -> None:
    """Two models train in turn, and their runs share one store."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/history.db" if trial.grown else None
        pairs = []
        for name in ("one", "two"):
            model = trial.wrap(Net())
            optimizer = adam(model)
            pairs.append((model, optimizer, trial.tamiyo(model, optimizer, store=url, run=name)))
        for number in trial.epochs:
            for pair in pairs:
                epoch(*pair, number)
        for _, _, tamiyo in pairs:
            if trial.grown:
                tamiyo.made.close()


@works
def settings_as_a_dictionary(trial: Trial) -> None:
    """The settings are a dictionary: `config={"growth": {...}}`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer, config={"growth": SOON})
    for number in trial.epochs:
        epoch(model, optimizer, tamiyo, number)


@works
def accuracy(trial: Trial) -> None:
    """`accuracy_fn` is given and recorded."""

    def near(model: nn.Module, batch: Any) -> Any:
        return ((model(batch[0]) - batch[1]).abs().mean(1) < 1).float()

    tamiyo = trial.train(Net(), accuracy_fn=near)
    if trial.grown:
        told = [e.data for e in tamiyo.made.events() if e.kind == "epoch"]
        assert all(0 <= data["holdout_accuracy"] <= 1 for data in told)


@works
def snapshot_by_deepcopy(trial: Trial) -> None:
    """`copy.deepcopy(model)` keeps a snapshot of each epoch, which then does not grow."""
    model = trial.wrap(Net())
    optimizer, kept = adam(model), []
    tamiyo = trial.tamiyo(model, optimizer)
    for number in trial.epochs:
        epoch(model, optimizer, tamiyo, number)
        kept.append((copy.deepcopy(model), held_out(model)))
    assert [held_out(snapshot) for snapshot, _ in kept] == [loss for _, loss in kept]


@holds
def plain_copy_trained_on(trial: Trial) -> None:
    """The plain model of `esper.harden` is trained on, saved and loaded without Esper."""
    model = trial.train(Net()).model
    plain = esper.harden(model)
    optimizer = SGD(plain.parameters(), lr=0.01)
    before = held_out(plain)
    for _ in range(5):
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(plain.train(), batch).mean().backward()
            optimizer.step()
    assert held_out(plain) < before
    assert not [m for m in plain.modules() if type(m).__module__.startswith("esper.")]


@works
def wrapped_again(trial: Trial) -> None:
    """More layers are wrapped after a first run was finished."""
    model = trial.wrap(Net(), ["fc1"])
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for number in trial.epochs:
        epoch(model, optimizer, tamiyo, number)
    tamiyo.finish()
    tamiyo.plain = False  # the second engine checks the model
    if trial.grown:
        esper.wrap(model, ["fc2"])
        again = esper.Tamiyo(model, optimizer, **tamiyo.given)
        assert set(again.layers) == {"fc1", "fc2"}
        for number in trial.epochs:
            for batch in TRAIN:
                optimizer.zero_grad()
                loss_fn(model, batch).mean().backward()
                optimizer.step()
                again.on_batch_end(batch)
            again.on_epoch_end(number)


@refused(
    "layer 'fc1' grows under another Tamiyo already; use that one, or call its finish() "
    "before you make the next"
)
def second_tamiyo(trial: Trial) -> None:
    """A second Tamiyo is made for a model that one grows already."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    first = trial.tamiyo(model, optimizer)
    trial.tamiyo(model, optimizer)
    first.finish()


@refused(
    "layer '0.fc1' grows under another Tamiyo already; use that one, or call its finish() "
    "before you make the next"
)
def second_tamiyo_around(trial: Trial) -> None:
    """A second Tamiyo is made for a module around a model that one grows already."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    first = trial.tamiyo(model, optimizer)
    trial.tamiyo(nn.Sequential(model), optimizer)
    first.finish()


@refused(
    "settings: unknown key in growth: 'bugdet'; known: budget, budget_share, kernel_budget, "
    "kernel_share, evenly, warmup_epochs, cooldown_epochs, plateau_window, plateau_threshold, "
    "max_active, starts, train_epochs, blend_epochs, ramp, keep_stderrs, judge, every, "
    "divergence_factor, epochs, probe_every, measure_on. Did you mean 'budget'?"
)
def misspelt_setting(trial: Trial) -> None:
    """A key of the settings is misspelt."""
    trial.tamiyo(trial.wrap(Net()), adam(Net()), config={"growth": {"bugdet": 800}})


@refused("nowhere.yaml: there is no such file")
def missing_file_of_settings(trial: Trial) -> None:
    """The file of the settings is not there."""
    trial.tamiyo(trial.wrap(Net()), adam(Net()), config="nowhere.yaml")


@refused(
    "unknown store 'mysql'; known: memory, sqlite, redis, http, rediss, unix, https. Write one of: "
    "memory:, sqlite:///file.db, sqlite:////absolute/file.db, redis://host:6379/0, http://host:8000/main"
)
def unknown_store(trial: Trial) -> None:
    """The store's URL names a kind that there is not."""
    model = trial.wrap(Net())
    trial.tamiyo(model, adam(model), store="mysql://localhost/history")
