"""Names that no store can hold, and decisions handed back as something else, are refused."""

import os
from collections.abc import Callable
from typing import Any

import pytest

import esper
from esper.contracts.errors import EsperError, SelectionError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.strategies import STRATEGIES

LATIN = os.fsdecode(b"gr\xf6sse")  # a lone surrogate, as os.listdir gives
DELTA = PerformanceDelta(reward=0.5)


@pytest.mark.parametrize(
    "use",
    [
        lambda name: esper.SeedSelector("auto").select_seed_now(name, [0, 1], SelectionContext()),
        lambda name: esper.Bandit("auto", 2, name=name),
        lambda name: esper.PerformanceTracker(scope=name),
        lambda name: esper.PerformanceTracker(store="memory:", run=name),
        lambda name: esper.PerformanceTracker().update_metrics_now(name, 0, DELTA),
        lambda name: esper.PerformanceTracker().bind("fc1", 0, name),
        lambda name: SelectionContext(blueprints={0: name}),
    ],
)
@pytest.mark.parametrize("name", [LATIN, 5, None])
def test_a_name_is_text_in_unicode(use: Callable[[Any], Any], name: Any) -> None:
    with pytest.raises(EsperError, match=str(name) if name != LATIN else r"udcf6"):
        use(name)
    use("größe")


def test_a_decision_is_handed_back_itself() -> None:
    tracker = esper.PerformanceTracker()
    made = esper.SeedSelector("ucb", tracker=tracker).decide("fc1", [0, 1], SelectionContext())
    bandit = esper.Bandit(STRATEGIES.create("ucb"), 2)
    pulled = bandit.decide()
    given: Any
    for given in (made.decision_id, 7, {"decision": "x"}):
        with pytest.raises(SelectionError, match="hand the Decision back"):
            tracker.update_metrics_now("fc1", made.seed_idx, DELTA, decision=given)
        with pytest.raises(SelectionError, match="hand the Decision back"):
            bandit.update(pulled.seed_idx, 1.0, decision=given)
    assert tracker.update_metrics_now("fc1", made.seed_idx, DELTA, decision=made) == 0.5
