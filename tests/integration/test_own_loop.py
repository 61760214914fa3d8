"""Tamiyo in a user's own training loop: the contract word for word, and what it promises."""

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.contracts.seeds import SeedState
from esper.execution.passes.counterfactual import counterfactual
from esper.stores import open_store
from esper.tasks import TASKS
from tests.unit.services.small_run import CULLED, KEPT, SmallRun, same, settings

pytestmark = pytest.mark.trains
DOCUMENT = """
seed_selection:
  strategy: "ucb"  # ucb, thompson, epsilon_greedy, performance_weighted

  ucb:
    exploration_constant: 2.0

  thompson:
    prior_alpha: 1.0
    prior_beta: 1.0

  epsilon_greedy:
    epsilon: 0.1
    decay_rate: 0.995

  performance:
    window_size: 20
    decay_factor: 0.9

  constraints:
    min_dormant_epochs: 5      # Cooldown between activations
    max_concurrent_seeds: 2    # Per layer limit
    fallback_to_zero: true     # Use seed 0 if selection fails
"""


def test_the_contract_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("esper.yaml").write_text(DOCUMENT, encoding="utf-8")
    task = TASKS.create("digits")
    holdout_batches, epochs = list(task.validation_batches()), 12
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        OrderedDict(flat=nn.Flatten(), fc1=nn.Linear(64, 6), act=nn.ReLU(), fc2=nn.Linear(6, 10))
    )

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    model = esper.wrap(model, layers=["fc1", "fc2"], seeds=["bottleneck", "gate", "glu", "lowrank"])
    layer = model.get_submodule("fc1")
    assert isinstance(layer, esper.KasminaLayer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    tamiyo = esper.Tamiyo(
        model, optimizer, loss_fn=loss_fn, holdout=holdout_batches,
        config="esper.yaml", store="sqlite:///history.db", scheduler=None, seed=0,
    )  # fmt: skip
    printed = []
    for epoch in range(epochs):
        for batch in task.train_batches(epoch, 0):
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tamiyo.on_batch_end(batch)
        printed.append(str(tamiyo.on_epoch_end(epoch)))
    plain = esper.harden(model)

    judged = [event.data for event in tamiyo.events() if event.kind == "graft"]
    assert judged
    assert any(graft["kept"] for graft in judged)
    assert tamiyo.used > 0
    tamiyo.close()
    inputs = holdout_batches[0][0]
    assert torch.equal(plain.eval()(inputs), model.eval()(inputs))
    assert not any("esper" in type(module).__module__ for module in plain.modules())
    stored = [event.kind for _, event in open_store("sqlite:///history.db").read()]
    assert stored.count("epoch") == epochs
    assert stored.count("graft") == len(judged)
    for epoch, text in enumerate(printed):
        assert text.startswith(f"epoch {epoch}: held-out loss ")
        assert all(0 < len(line) < 200 for line in text.splitlines())


# --- until the first blending, nobody can tell that Tamiyo is there -------------------------------


def states(run: SmallRun) -> set[SeedState]:
    return {state for layer in run.engine.layers.values() for state in layer.seed_states}


def test_until_the_first_blending_the_run_is_the_control_bit_for_bit() -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)

    control = SmallRun(grown=False, make_scheduler=scheduler)
    theirs = [control.state()] + [control.run(epoch + 1, first=epoch).state() for epoch in range(6)]

    grown = SmallRun(config=settings(train_epochs=3, probe_every=3), make_scheduler=scheduler)
    assert same(grown.state(), theirs[0])
    for epoch in range(4):
        grown.epoch(epoch)
        assert same(grown.state(), theirs[epoch + 1]), f"differs after epoch {epoch}"
    assert SeedState.TRAINING in states(grown)
    grown.epoch(4)  # it began at the end of epoch 1 and trained for three: blending begins
    assert SeedState.BLENDING in states(grown)
    ours = grown.state()
    (group,), (other,) = ours["optimizer"], theirs[5]["optimizer"]
    assert len(group["names"]) == len(group["state"]) > len(other["names"])
    assert len(group.pop("esper_kernels")) == len(group["names"]) - len(other["names"])
    for column in ("names", "state"):  # the kernel's parameters come last
        del group[column][len(other[column]) :]
    assert same(ours, theirs[5])
    grown.epoch(5)
    assert not same(grown.state()["tensors"], theirs[6]["tensors"])
    assert same(grown.state()["random"], theirs[6]["random"])


def test_a_budget_too_small_for_any_kernel_says_so_and_trains_on_as_the_control() -> None:
    grown = SmallRun(config=settings(budget=5)).run(5)
    control = SmallRun(grown=False).run(5)
    assert same(grown.state(), control.state())
    assert grown.engine.used == 0
    assert "the budget is too small" in grown.reports[-1].reason
    assert "5 of 5 parameters are left" in grown.reports[-1].reason
    assert not grown.events("request", "decision")


# --- one graft, from its request to its cooldown --------------------------------------------------


@pytest.fixture(scope="module")
def finished() -> SmallRun:
    """A run with kept and culled kernels."""
    return SmallRun(config=settings(max_active=1), worth=(KEPT, CULLED)).run(17)


def test_a_graft_leaves_its_events_in_order(finished: SmallRun) -> None:
    first = finished.facts("request")[0]
    decision = finished.facts("decision")[0]
    slot = (decision["layer"], decision["seed"])
    trail = []
    for event in finished.events():
        data = event.data
        if event.kind == "request" and data["epoch"] == first["epoch"]:
            trail.append("request")
        elif event.kind == "lifecycle" and (data["layer"], data["seed"]) == slot:
            trail.append(f"{data['old']}>{data['new']}")
        elif data.get("decision") == decision["decision"] and event.kind != "epoch":
            trail.append(event.kind)
    ended = "fossilized" if finished.facts("graft")[0]["kept"] else "culled"
    assert trail[:10] == [
        "request",
        "decision",
        "dormant>germinated",
        "germinated>training",
        "training>blending",
        "blending>holding",
        "outcome",
        f"holding>{ended}",
        "graft",
        f"{ended}>dormant",
    ]


def test_the_steps_of_every_graft_come_at_the_epochs_that_the_settings_say(
    finished: SmallRun,
) -> None:
    for graft in finished.facts("graft"):
        steps = {
            data["new"]: data["epoch"]
            for data in finished.facts("lifecycle")
            if data["kernel_id"] == graft["kernel_id"]
        }
        began = graft["began"]
        last = "fossilized" if graft["kept"] else "culled"
        assert steps == {
            "germinated": began,
            "training": began,
            "blending": began + 2,
            "holding": began + 3,
            last: began + 3,
        }
        assert graft["epoch"] == began + 3
    for data in finished.facts("lifecycle"):
        if data["new"] == "dormant":
            ended = [
                graft["epoch"]
                for graft in finished.facts("graft")
                if (graft["layer"], graft["seed"]) == (data["layer"], data["seed"])
            ]
            assert data["epoch"] - 5 in ended


def test_facts_of_a_graft_agree_everywhere(finished: SmallRun) -> None:
    grafts = finished.facts("graft")
    outcomes = finished.facts("outcome")
    decisions = {data["decision"]: data for data in finished.facts("decision")}
    assert len(grafts) == len(outcomes) > 3
    assert {graft["kept"] for graft in grafts} == {True, False}
    for graft, outcome in zip(grafts, outcomes, strict=True):
        decision = decisions[outcome["decision"]]
        assert graft["decision"] == outcome["decision"]
        assert (decision["layer"], decision["seed"]) == (graft["layer"], graft["seed"])
        assert outcome["kernel"] == graft["kernel_id"]
        assert outcome["reward"] == graft["reward"]
        assert outcome["reward_stderr"] == graft["stderr"]
        assert graft["kept"] is (graft["reward"] > 2 * graft["stderr"])
        assert decision["epoch"] == graft["began"]
        epochs = {data["epoch"]: data["holdout_loss"] for data in finished.facts("epoch")}
        loss_delta = epochs[graft["began"]] - epochs[graft["epoch"]]
        assert outcome["loss_delta"] == pytest.approx(loss_delta)
    metrics = finished.engine.tracker.get_layer_metrics
    kept = sum(m.successful_grafts for name in ("fc1", "fc2") for m in metrics(name).values())
    assert kept == sum(graft["kept"] for graft in grafts)


def test_what_a_graft_is_worth_is_the_counterfactual_of_that_moment() -> None:
    run = SmallRun(config=settings(max_active=1))
    judged = 0
    for epoch in range(12):
        due = {
            name: [i for i, s in enumerate(layer.seed_states) if s is SeedState.BLENDING]
            for name, layer in run.engine.layers.items()
        }
        batches = list(run.train_batches())
        for batch in batches:
            run.step(batch)
        expected = {
            (name, seed_idx): counterfactual(
                run.model,
                run.engine.layers[name],
                seed_idx,
                loss_fn=run.loss_fn,
                holdout=run.holdout,
                calibration=batches[-8:],
            )
            for name, seeds in due.items()
            for seed_idx in seeds
        }
        for verdict in run.engine.on_epoch_end(epoch).verdicts:
            effect = expected[verdict.layer_name, verdict.seed_idx]
            assert (verdict.reward, verdict.stderr) == (effect.gain, effect.stderr)
            judged += 1
    assert judged >= 3


def test_culled_kernels_leave_optimizer_and_scheduler_as_if_never_there() -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.95**epoch)

    run = SmallRun(config=settings(max_active=1, keep_stderrs=1e6), make_scheduler=scheduler)
    own = [id(p) for p in run.model.parameters()]
    for epoch in range(8):
        run.epoch(epoch)
        active = len(run.engine.grafts.grafts)
        held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
        blending = [
            graft for graft in run.engine.grafts.grafts if graft.state is SeedState.BLENDING
        ]
        grown = [id(p) for graft in blending for p in graft.kernel.module.parameters()]
        assert held == own + grown
        assert len(run.optimizer.param_groups) == len(run.scheduler.base_lrs) == 1
        assert {id(p) for p in run.optimizer.state} <= set(held)
        assert active <= 1
    assert [v.kept for report in run.reports for v in report.verdicts] == [False, False]


def test_fossils_stay_in_the_optimizer_and_go_on_learning() -> None:
    run = SmallRun(config=settings(max_active=1), worth=[KEPT]).run(14)
    fossils = [p for layer in run.engine.layers.values() for p in layer.fossils.parameters()]
    assert fossils
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in fossils} <= held
    before = [p.detach().clone() for p in fossils]
    run.epoch(14)
    assert all(not torch.equal(old, new) for old, new in zip(before, fossils, strict=True))


# --- when: warm-up, cooldown, plateau, limit ------------------------------------------------------


def begun(run: SmallRun) -> list[int]:
    return [data["epoch"] for data in run.facts("decision")]


def test_warm_up_and_cooldown_are_kept() -> None:
    run = SmallRun(config=settings(warmup_epochs=4, cooldown_epochs=3)).run(14)
    epochs = begun(run)
    assert epochs[0] == 3
    assert len(epochs) > 2
    assert all(later - earlier >= 3 for earlier, later in pairwise(epochs))
    assert run.reports[1].reason == "warming up until epoch 3"
    assert "cooling down for 2 more epoch(s)" in run.reports[4].reason


def test_it_waits_while_the_host_learns_by_itself() -> None:
    run = SmallRun(config=settings(plateau_threshold=0.05, plateau_window=2)).run(16)
    losses = [report.holdout_loss for report in run.reports]
    for epoch in begun(run):
        assert epoch >= 2
        fall = 1 - (losses[epoch] / losses[epoch - 2]) ** (1 / 2)
        assert fall <= 0.05
    assert begun(run)
    assert "the host still learns by itself" in run.reports[2].reason


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_more_grafts_than_allowed_are_under_way_at_once(limit: int) -> None:
    run = SmallRun(config=settings(max_active=limit))
    most = 0
    for epoch in range(7):
        run.epoch(epoch)
        most = max(most, len(run.engine.grafts.grafts))
        assert len(run.engine.grafts.grafts) <= limit
    assert most == min(limit, 2)  # the policy grows each of the two layers once at a time
