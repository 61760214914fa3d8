"""Whatever is set, growth never costs more parameters than it may, at any moment."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts.seeds import SeedState
from esper.execution.concealed import every_module
from esper.strategies import STRATEGIES
from tests.unit.services import small_run
from tests.unit.services.small_run import SmallRun

SLOTS = st.lists(st.sampled_from(["lowrank", "bottleneck", "gate", "glu"]), min_size=1, max_size=4)
GROWTH = st.fixed_dictionaries(
    {
        "budget": st.integers(0, 300),
        "kernel_budget": st.none() | st.integers(1, 400),
        "max_active": st.integers(1, 4),
        "train_epochs": st.integers(1, 2),
        "keep_stderrs": st.sampled_from([0.0, 1.0, 1e9]),
        "cooldown_epochs": st.integers(0, 2),
    }
)
CONSTRAINTS = st.fixed_dictionaries(
    {
        "min_dormant_epochs": st.integers(0, 6),
        "max_concurrent_seeds": st.integers(1, 3),
        "fallback_to_zero": st.booleans(),
    }
)


@pytest.mark.trains
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    growth=GROWTH,
    constraints=CONSTRAINTS,
    strategy=st.sampled_from(STRATEGIES.names()),
    slots=st.tuples(SLOTS, SLOTS),
    seed=st.integers(0, 99),
)
def test_the_budget_is_never_exceeded(
    growth: dict[str, Any],
    constraints: dict[str, Any],
    strategy: str,
    slots: tuple[list[str], list[str]],
    seed: int,
) -> None:
    config = small_run.settings(strategy=strategy, constraints=constraints, **growth)
    run = SmallRun(
        config=config,
        seeds={"fc1": slots[0], "fc2": slots[1]},
        options={"seed": seed},
        model=small_run.host(seed, restless=False),
    )
    plain = sum(p.numel() for p in small_run.host(restless=False).parameters())
    for epoch in range(7):
        for batch in list(run.train_batches())[:3]:
            run.step(batch)
            assert run.engine.used <= growth["budget"]
        report = run.engine.on_epoch_end(epoch)
        # Counted by hand, not by those who keep count.
        seen = {id(p): p for m in every_module(run.model) for p in m.parameters(recurse=False)}
        cohorts: dict[str, list[int]] = {}
        for graft in run.engine.grafts.grafts:
            alone = graft.state is not SeedState.TRAINING
            point = graft.decision.decision_id if alone else graft.decision.audition
            cohorts.setdefault(point or graft.decision.decision_id, []).append(graft.parameters)
        # Of those that audition one will stay, at most the largest.
        leave = sum(sum(sizes) - max(sizes) for sizes in cohorts.values())
        grown = sum(p.numel() for p in seen.values()) - plain - leave
        assert report.used == grown <= growth["budget"]
        assert len(cohorts) <= growth["max_active"]
        if growth["kernel_budget"] is not None:
            assert all(g.parameters <= growth["kernel_budget"] for g in run.engine.grafts.grafts)
    points = {data.get("audition") or data["decision"]: data for data in run.facts("decision")}
    begun = [data["epoch"] for data in points.values()]
    assert all(b - a >= growth["cooldown_epochs"] for a, b in pairwise(begun))
