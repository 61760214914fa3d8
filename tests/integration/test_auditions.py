"""Auditions: seeds train side by side in the shadow, and the best goes on."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from esper.cli.main import app
from esper.contracts.config import Config
from esper.contracts.seeds import SeedState
from esper.records.fold import KINDS
from esper.runs.placebos import of_events
from esper.services.tamiyo.settings import config_from
from esper.stores.memory import MemoryStore
from tests.unit.services.small_run import CULLED, KEPT, LAYERS, SEEDS, SmallRun, same

pytestmark = pytest.mark.trains


def _settings(
    audition: str = "always",
    *,
    strategy: str = "auto",
    policy: str = "heuristic",
    constraints: Mapping[str, Any] | None = None,
    **growth: Any,
) -> Config:
    wanted = {"budget": 400, "plateau_threshold": 1.0, "probe_every": 4, "train_epochs": 1}
    selection = {"strategy": strategy, "audition": audition, "constraints": constraints or {}}
    data = {"growth": {**wanted, **growth}, "seed_selection": selection, "policy": policy}
    return config_from(data)


def _cohorts(run: SmallRun) -> dict[str, list[dict[str, Any]]]:
    cohorts = defaultdict(list)
    for fact in run.facts("audition"):
        cohorts[fact["point"]].append(fact)
    return dict(cohorts)


def test_all_seeds_of_a_layer_audition_and_the_best_goes_on() -> None:
    run = SmallRun(config=_settings(constraints={"min_dormant_epochs": 0})).run(10)
    cohorts = _cohorts(run)
    assert len(cohorts) >= 2
    outcomes = {fact["decision"] for fact in run.facts("outcome", "failure")}
    withdrawn = {fact["decision"] for fact in run.facts("withdrawal")}
    for point, cohort in cohorts.items():
        assert {fact["seed"] for fact in cohort} == set(range(len(SEEDS)))
        assert {fact["site"] for fact in cohort} == {cohort[0]["layer"]}
        gains = [fact["gain"] for fact in cohort]
        assert sum(fact["relative"] for fact in cohort) == pytest.approx(0.0, abs=1e-12)
        assert [fact["mean"] for fact in cohort] == pytest.approx([sum(gains) / len(gains)] * 4)
        best = max(cohort, key=lambda fact: float(fact["gain"]))["decision"]
        assert {fact["decision"] for fact in cohort} - {best} <= withdrawn
        assert best not in withdrawn
        assert point in {fact["decision"] for fact in cohort}
    winners = {max(one, key=lambda f: float(f["gain"]))["decision"] for one in cohorts.values()}
    assert outcomes <= winners


def test_sizes_of_one_blueprint_audition_beside_each_other() -> None:
    menu = ["lowrank", "lowrank@1/2", "lowrank@1/4"]
    run = SmallRun(seeds=menu, config=_settings(policy="learned", kernel_budget=40)).run(8)
    sizes = {
        fact["blueprint"]: fact["parameters"]
        for fact in run.facts("lifecycle")
        if fact["new"] == "training" and fact["layer"] == "fc1"
    }
    assert [sizes[name] for name in menu] == [40, 20, 10]
    assert {fact["blueprint"] for fact in run.facts("audition")} == set(menu)
    assert run.engine.used <= run.engine.budget
    assert run.facts("graft")


def test_an_audition_does_not_touch_the_host() -> None:
    """Until the best of a cohort is blended in, the run is the control's, bit for bit."""
    run = SmallRun(config=_settings(warmup_epochs=1, train_epochs=3, max_active=1)).run(3)
    grown, control = run.state(), SmallRun(grown=False).run(3)
    assert len([g for g in run.engine.grafts.grafts if g.auditions]) == len(SEEDS)
    assert same(grown, control.state())


def test_those_that_lose_may_be_chosen_again_at_once_and_only_the_largest_is_paid_for() -> None:
    run = SmallRun(config=_settings(constraints={"min_dormant_epochs": 9}, max_active=1))
    while not _cohorts(run):
        run.epoch(len(run.reports))
        sizes = [graft.parameters for graft in run.engine.grafts.grafts]
        assert run.engine.used == max(sizes, default=0)
    (graft,) = run.engine.grafts.grafts
    layer = graft.layer
    assert graft.state is SeedState.BLENDING
    others = [i for i in range(len(SEEDS)) if i != graft.decision.seed_idx]
    assert layer.available_seeds == others
    assert not run.engine.selector.freed(layer.name)


def test_an_audition_counts_as_one_graft_under_way() -> None:
    run = SmallRun(config=_settings(max_active=2, budget=4000, warmup_epochs=1)).run(5)
    requests = [fact["epoch"] for fact in run.facts("request")]
    assert len(requests) > len(_cohorts(run)) - 2
    assert all(r.used <= r.budget for r in run.reports)


@pytest.mark.parametrize(
    ("audition", "growth", "heard"),
    [
        ("always", {"train_epochs": 1}, True),
        ("always", {"train_epochs": 0}, True),
        ("auto", {"train_epochs": 1}, True),
        ("auto", {"train_epochs": 0}, False),
        ("never", {"train_epochs": 1}, False),
    ],
)
def test_when_seeds_audition(audition: str, growth: dict[str, Any], heard: bool) -> None:
    run = SmallRun(config=_settings(audition, **growth)).run(6)
    assert bool(run.facts("audition")) == heard
    assert run.facts("outcome")


@pytest.mark.parametrize("strategy", ["ucb", "thompson", "random", "fixed"])
def test_a_strategy_that_learns_nothing_from_auditions_has_none_by_itself(strategy: str) -> None:
    assert not SmallRun(config=_settings("auto", strategy=strategy)).run(6).facts("audition")


def test_nothing_auditions_that_could_not_be_judged() -> None:
    run = SmallRun(config=_settings(epochs=6, train_epochs=1)).run(6)
    assert not run.engine.grafts.grafts
    began = [fact["epoch"] for fact in run.facts("decision")]
    assert began
    assert max(began) <= 3


@pytest.mark.parametrize("stopped", [2, 3, 4, 5])
def test_a_run_resumed_in_an_audition_is_the_run_that_was_never_stopped(stopped: int) -> None:
    config = _settings("always", train_epochs=2, policy="learned")
    whole = SmallRun(config=config).run(9)
    first = SmallRun(config=config).run(stopped)
    random = torch.get_rng_state()
    resumed = SmallRun(config=config)
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.engine.load_state_dict(first.engine.state_dict())
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    torch.set_rng_state(random)
    resumed.run(9, first=stopped)
    later = [fact for fact in whole.facts(*KINDS) if fact not in first.facts(*KINDS)]
    assert [fact for fact in resumed.facts(*KINDS) if fact not in first.facts(*KINDS)] == later
    assert later
    assert same(resumed.state()["tensors"], whole.state()["tensors"])


def test_seeds_of_all_sites_audition_side_by_side() -> None:
    run = SmallRun(config=_settings("auto", policy="learned", budget=2000)).run(6)
    first = next(iter(_cohorts(run).values()))
    assert {fact["layer"] for fact in first} == set(LAYERS)
    best = max(first, key=lambda fact: float(fact["gain"]))
    blended = [f for f in run.facts("lifecycle") if f["new"] == "blending"]
    assert (blended[0]["layer"], blended[0]["seed"]) == (best["layer"], best["seed"])


def test_a_second_run_knows_what_the_first_one_heard() -> None:
    store = MemoryStore()
    config = _settings("auto", policy="learned", budget=2000)
    heard = []
    for number in range(4):
        options = {"store": store, "scope": "s", "run": f"r{number}", "seed": number}
        run = SmallRun(config=config, options=options).run(8)
        heard.append(len(run.facts("audition")))
    assert heard[-1] < heard[0]


def test_kernels_that_fail_leave_the_others_to_audition(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SmallRun(config=_settings(train_epochs=2, warmup_epochs=1))
    run.run(2)
    grafts = list(run.engine.grafts.grafts)
    assert len(grafts) == len(SEEDS)
    with torch.no_grad():
        next(grafts[0].kernel.module.parameters()).fill_(float("nan"))
    run.run(5, first=2)
    (cohort, *_) = _cohorts(run).values()
    assert {fact["seed"] for fact in cohort} == {1, 2, 3}
    assert [fact["seed"] for fact in run.facts("failure")][:1] == [0]


def test_placebos_are_judged_and_never_kept() -> None:
    """Each would be kept, by what is told of it; one wins an audition only among its like."""
    config = _settings(constraints={"min_dormant_epochs": 0})
    run = SmallRun(config=config, seeds=["placebo"] * 2, worth=(KEPT, CULLED)).run(8)
    ends = run.facts("graft")
    assert len(ends) >= 2
    assert {(end["seed"], end["kept"], end["passed"]) for end in ends} == {(0, False, True)}
    assert "a placebo, which is never kept; it would have been kept: worth" in ends[0]["why"]
    judged = [(fact["seed"], fact["passed"]) for fact in run.facts("audition")]
    assert set(judged) == {(0, True), (1, False)}
    found = of_events(run.events())
    assert (found.blended.judged, found.blended.passed) == (len(ends), len(ends))
    assert found.shadow.judged == 2 * found.shadow.passed == len(judged)
    assert not any(layer.fossils for layer in run.engine.layers.values())


def test_a_placebo_does_not_win_over_others() -> None:
    config = _settings(constraints={"min_dormant_epochs": 0})
    run = SmallRun(config=config, seeds=["placebo", "glu"], worth=(2 * KEPT, KEPT)).run(8)
    assert {(end["seed"], end["kept"]) for end in run.facts("graft")} == {(1, True)}
    assert not any("passed" in end for end in run.facts("graft"))
    assert {fact["seed"] for fact in run.facts("audition") if "passed" in fact} == {0}
    lost = next(step for step in run.facts("lifecycle") if step["why"].startswith("lost"))
    assert lost["why"].startswith("lost its audition: a placebo, worth +0.1000")


def test_placebos_of_a_store_are_shown(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/h.db"
    options = {"store": url, "scope": "s", "run": "r"}
    config = _settings(constraints={"min_dormant_epochs": 0})
    run = SmallRun(config=config, seeds=["placebo", "placebo", "glu"], options=options).run(6)
    judged = sum("passed" in fact for fact in run.facts("audition"))
    run.engine.close()
    (scope,) = json.loads(CliRunner().invoke(app, ["inspect", url, "--json"]).stdout)
    assert scope["placebos"]["shadow"]["judged"] == judged > 0
    assert scope["placebos"]["blended"]["share"] is None
    text = CliRunner().invoke(app, ["inspect", url], env={"COLUMNS": "200"}).stdout
    assert "Placebos that would have been kept: in the shadow " in text
    assert f" of {judged}, " in text
    assert "blended in none judged; 1 % is expected." in text


def test_an_ab_test_has_no_auditions() -> None:
    arms = {"a": {"strategy": "auto"}, "b": {"strategy": "ucb"}}
    data = _settings("always").model_dump(mode="json")
    data["ab_test"] = {"salt": "s", "arms": arms}
    run = SmallRun(config=config_from({k: v for k, v in data.items() if v is not None})).run(6)
    assert run.facts("decision")
    assert not run.facts("audition")


def test_decisions_carry_the_depth_of_their_layer_and_a_cohort_is_no_larger_than_set() -> None:
    config = _settings(policy="learned", constraints={"min_dormant_epochs": 0})
    limited = config.seed_selection.model_copy(update={"most_auditioned": 3})
    run = SmallRun(config=config.model_copy(update={"seed_selection": limited})).run(8)
    order = {name: (at + 0.5) / len(LAYERS) for at, name in enumerate(LAYERS)}
    decisions = run.facts("decision")
    assert decisions
    assert all(fact["depth"] == pytest.approx(order[fact["layer"]]) for fact in decisions)
    assert {len(cohort) for cohort in _cohorts(run).values()} == {3}
    assert {fact["depth"] for fact in run.facts("health") if fact["epoch"] == 5} == {
        *order.values()
    }
