"""Previews of seeds, read from a store of the selector on its own."""

from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.selection import SelectionContext
from esper.runs.seed_previews import document, preview_store
from esper.services.tamiyo.performance_tracker import PerformanceDelta, PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.sqlite import SqliteStore
from esper.strategies import STRATEGIES


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store in which two scopes chose; one of them had a strategy of its own."""
    with SqliteStore(tmp_path / "h.db") as store:
        for scope, strategy in (("lab", "ucb"), ("shop", "lin_ts")):
            tracker = PerformanceTracker(store=store, scope=scope, run="r")
            selector = SeedSelector(STRATEGIES.create(strategy), tracker=tracker)
            for step in range(9):
                context = SelectionContext(step, layer_type="Linear", blueprints={0: "glu"})
                seed_idx, _ = selector.select_seed_now("fc1", [0, 1, 2], context)
                if step < 8:
                    delta = PerformanceDelta(reward=0.1 * seed_idx + 0.01 * step)
                    tracker.update_metrics_now("fc1", seed_idx, delta)
            tracker.flush()
    return f"sqlite:///{tmp_path}/h.db"


def test_every_scope_is_previewed_by_the_strategy_that_chose_last_there(url: str) -> None:
    lab, shop = preview_store(url)
    assert [(one.scope, one.strategy) for one in (lab, shop)] == [
        ("lab", "ucb"), ("shop", "lin_ts")
    ]  # fmt: skip
    for one in (lab, shop):
        seeds = [("fc1", 0), ("fc1", 1), ("fc1", 2)]
        assert list(one.previews) == list(one.blueprints) == seeds
        assert one.blueprints["fc1", 0] == "glu"
        assert len(one.decisions) == 9
        assert sum(seed.outcomes for seed in one.previews.values()) == 8
        assert sum(seed.pending for seed in one.previews.values()) == 1


def test_a_document_has_each_seed_and_the_latest_decision(url: str) -> None:
    (lab,) = preview_store(url, "lab")
    shown = document(lab)
    assert [seed["seed"] for seed in shown["seeds"]] == [0, 1, 2]
    assert shown["latest_decision"]["epoch"] == 8
    assert shown["decisions"] == 9


def test_what_is_not_there_is_said(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no choice of scope 'elsewhere'"):
        preview_store(url, "elsewhere")
    with pytest.raises(StoreError, match="there is no file"):
        preview_store(f"sqlite:///{tmp_path}/none.db")
    SqliteStore(tmp_path / "empty.db").close()
    with pytest.raises(ConfigError, match="has no choice to show"):
        preview_store(f"sqlite:///{tmp_path}/empty.db")
