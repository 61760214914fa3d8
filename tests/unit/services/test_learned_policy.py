"""The learned policy: where the best seed is, and who auditions beside it."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial

import pytest

from esper.contracts.audition import NO_WORTHS, Worths
from esper.contracts.config import Growth
from esper.contracts.health import HealthSignal
from esper.services.tamiyo.policies import POLICIES, LayerGrowth, Situation

LAYERS = ("fc1", "fc2", "fc3")


def _situation(worths: Worths, **records: LayerGrowth) -> Situation:
    signals = [
        HealthSignal(layer_name=name, epoch=5, gradient_rms=1.0, input_rms=1.0) for name in LAYERS
    ]
    known = {name: LayerGrowth(smallest_kernel=10, roomy_kernel=20) for name in LAYERS}
    return Situation(
        epoch=5,
        losses=[1.0, 1.0, 1.0, 1.0],
        signals=signals,
        records={**known, **records},
        worths=lambda budgets: _of(worths, budgets),
    )


def _of(worths: Worths, layers: Collection[str]) -> Worths:
    places = [at for at, (layer, _) in enumerate(worths.arms) if layer in layers]
    return Worths(
        tuple(worths.arms[at] for at in places),
        tuple(worths.means[at] for at in places),
        tuple(tuple(worths.covariance[at][to] for to in places) for at in places),
    )


def _whatever(worths: Worths, budgets: Collection[str]) -> Worths:
    del budgets
    return worths


def _worths(*means: float, sd: float = 0.05) -> Worths:
    arms = tuple((name, seed) for name in LAYERS for seed in (0, 1))
    rows = tuple(tuple(sd * sd * (i == j) for j in range(6)) for i in range(6))
    return Worths(arms, means, rows)


def _ask(situation: Situation, name: str = "learned") -> tuple[str, tuple[str, ...], str]:
    policy = POLICIES.create(name, growth=Growth(budget=400, plateau_threshold=1.0), seed=0)
    request, reason = policy.ask(situation)
    assert request is not None
    return str(request.site), tuple(map(str, request.rivals)), reason


def test_it_asks_for_the_site_of_the_best_seed_and_all_others_may_compete() -> None:
    site, rivals, reason = _ask(_situation(_worths(0.5, 0.4, 0.6, 2.0, 0.1, 0.3)))
    assert (site, rivals) == ("fc2", ("fc1", "fc3"))
    assert reason == (
        "seed 1 of layer fc2 is worth 2.00 ± 0.05 times what an average seed earns now, the most "
        "of 6"
    )


def test_a_site_that_cannot_grow_is_no_rival() -> None:
    busy = LayerGrowth(smallest_kernel=10, roomy_kernel=20, active=1)
    site, rivals, _ = _ask(_situation(_worths(0.5, 0.4, 0.6, 2.0, 0.1, 0.3), fc2=busy))
    assert (site, rivals) == ("fc1", ("fc3",))


@pytest.mark.parametrize("worths", [NO_WORTHS, _worths(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)])
def test_where_nothing_tells_sites_apart_it_is_the_heuristic(worths: Worths) -> None:
    grown = LayerGrowth(smallest_kernel=10, roomy_kernel=20, judged=2, kept=2)
    situation = _situation(worths, fc1=grown)
    assert _ask(situation)[0] == _ask(situation, "heuristic")[0] == "fc2"


def test_it_waits_as_the_heuristic_does() -> None:
    policies = [
        POLICIES.create(name, growth=Growth(budget=400, warmup_epochs=9), seed=0)
        for name in ("learned", "heuristic")
    ]
    situation = _situation(_worths(1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert policies[0].ask(situation) == policies[1].ask(situation)


def test_of_very_many_seeds_the_site_is_drawn_and_not_always_the_highest_mean() -> None:
    arms = tuple((name, seed) for name in LAYERS for seed in range(10))
    rows = tuple(tuple(0.25 * (i == j) for j in range(30)) for i in range(30))
    means = (1.1, *(1.0 for _ in range(29)))
    policy = POLICIES.create("learned", growth=Growth(budget=400, plateau_threshold=1.0), seed=0)
    sites = set()
    for choices in range(20):
        worths = Worths(arms, means, rows, choices=choices)
        now = replace(_situation(NO_WORTHS), worths=partial(_whatever, worths))
        request, reason = policy.ask(now)
        assert request is not None
        assert "drawn as the best of 30" in reason
        sites.add(str(request.site))
    assert sites == set(LAYERS)
