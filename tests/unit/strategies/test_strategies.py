"""Properties of single strategies."""

from typing import Any

import pytest

from esper.contracts.errors import ConfigError, SelectionError
from esper.contracts.performance import PerformanceDelta, SeedPerformanceMetrics
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES
from esper.strategies.epsilon_greedy import EpsilonGreedy
from esper.strategies.posteriors import BestDraw, Parameters, Posterior, draw
from esper.strategies.scoring import standardise
from esper.strategies.ucb import UCB

CONTEXT = SelectionContext()


def seeds(*rewards: list[float], chosen: int = 1) -> dict[int, SeedPerformanceMetrics]:
    return {
        index: SeedPerformanceMetrics(index, "fc1", rewards=values, total_activations=chosen)
        for index, values in enumerate(rewards)
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ucb", {"exploration_constant": 0}),
        ("ucb", {"exploration_constant": "2"}),
        ("ucb", {"exploration_constant": True}),
        ("thompson", {"prior_alpha": 0}),
        ("thompson", {"prior_beta": float("nan")}),
        ("thompson", {"prior_count": -1}),
        ("thompson", {"posterior": "betta"}),
        ("thompson", {"prior_shape": 0}),
        ("epsilon_greedy", {"epsilon": 1.5}),
        ("epsilon_greedy", {"decay_rate": 0}),
        ("performance_weighted", {"temperature": 0}),
        ("performance_weighted", {"floor": -0.1}),
        ("fixed", {"seed_idx": -1}),
        ("fixed", {"seed_idx": 1.0}),
        ("ucb", {"exploration": 2.0}),
    ],
)
def test_bad_settings_are_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        STRATEGIES.create(name, **settings)


def test_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'thompson'"):
        STRATEGIES.create("thomson")


def test_ucb_returns_to_a_seed_that_is_left_alone_although_windows_are_full() -> None:
    tracker = PerformanceTracker(window_size=5)
    selector = SeedSelector(UCB(), tracker=tracker)
    chosen = []
    for epoch in range(3000):
        context = SelectionContext(current_epoch=epoch)
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1], context)
        reward = (0.0, 1.0)[seed_idx] + 0.5 * (-1) ** epoch
        tracker.update_metrics_now("fc1", seed_idx, PerformanceDelta(reward=reward))
        chosen.append(seed_idx)
    assert 0 in chosen[20:]
    assert chosen.count(1) > 2900


def test_a_seed_without_outcomes_does_not_hold_up_the_others() -> None:
    metrics = seeds([0.1, 0.2], [0.1, 0.3], [])
    metrics[2].total_activations = 50
    scores = UCB().scores([0, 1, 2], metrics)
    assert scores[2] < min(scores[0], scores[1])


def test_epsilon_decays_with_the_choices_of_the_layer() -> None:
    strategy = EpsilonGreedy(epsilon=0.5, decay_rate=0.9)
    for chosen in (0, 1, 20):
        metrics = seeds([1.0], [3.0], chosen=chosen)
        epsilon = 0.5 * 0.9 ** (2 * chosen)
        found = {
            made: reason.propensity
            for number in range(60)
            for made, reason in [strategy.decide([0, 1], metrics, CONTEXT, Draws(0, "x", number))]
        }
        assert found[1] == pytest.approx(1 - epsilon / 2)
        assert found.get(0, epsilon / 2) == pytest.approx(epsilon / 2)


def test_ties_are_drawn_evenly() -> None:
    metrics = seeds([1.0, 2.0], [2.0, 1.0], [0.0, 0.0])
    strategy = EpsilonGreedy(epsilon=0)
    reasons = [
        strategy.decide([0, 1, 2], metrics, CONTEXT, Draws(0, "x", number))[1]
        for number in range(400)
    ]
    assert {reason.propensity for reason in reasons} == {0.5}
    assert 160 < sum(reason.seed_idx == 0 for reason in reasons) < 240


def test_scores_that_differ_by_rounding_are_ties() -> None:
    tracker = PerformanceTracker()
    for seed, rewards in enumerate(([0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.3, 0.1])):
        for reward in rewards:
            tracker.update_metrics_now("fc1", seed, PerformanceDelta(reward=reward))
    layer = tracker.layer("fc1")
    assert layer is not None
    assert layer.seeds[0].mean != layer.seeds[1].mean
    _, reason = UCB().decide([0, 1], layer.seeds, CONTEXT, Draws(0, "fc1", 0))
    assert reason.propensity == 0.5


@pytest.mark.parametrize(
    ("posterior", "parameters"),
    [
        ("beta", ((0, (1.0, 1.0)), (1, (3.0, 9.0)), (2, (40.0, 30.0)), (3, (0.4, 0.3)))),
        ("gaussian", ((0, (0.0, 1.0)), (1, (0.5, 0.2)), (2, (1.0, 0.05)), (3, (0.9, 0.3)))),
        ("nig", ((0, (0.0, 1.0, 1.0)), (1, (0.5, 0.2, 4.0)), (2, (1.0, 0.05, 40.0)))),
    ],
)
def test_chances_of_thompson_agree_with_drawing(
    posterior: Posterior, parameters: tuple[tuple[int, Parameters], ...]
) -> None:
    chance, rng, draws = BestDraw(posterior, parameters), Draws(2, "x", 0), 20_000
    won = [0] * len(parameters)
    for _ in range(draws):
        values = [draw(posterior, own, rng) for _, own in parameters]
        won[values.index(max(values))] += 1
    claimed = [chance.of(seed) for seed, _ in parameters]
    assert sum(claimed) == pytest.approx(1, abs=0.002)
    assert chance.all() == dict(enumerate(claimed))
    assert chance.error == 0.002
    assert claimed == pytest.approx([count / draws for count in won], abs=0.014)


def test_chances_of_thompson_are_exact_where_that_is_known() -> None:
    # Two normals: Phi((1 - 0.5) / sqrt(0.3**2 + 0.4**2)) = Phi(1) = 0.8413.
    gaussian = BestDraw("gaussian", ((0, (1.0, 0.3)), (1, (0.5, 0.4))))
    assert gaussian.of(0) == pytest.approx(0.8413, abs=2e-4)
    # Uniform against the largest of ten uniforms.
    beta = BestDraw("beta", ((0, (1.0, 1.0)), (1, (10.0, 1.0))))
    assert beta.of(1) == pytest.approx(10 / 11, abs=2e-4)
    # A prior far narrower and one far wider than the rest are resolved as well.
    extreme = BestDraw("beta", ((0, (0.001, 0.001)), (1, (5e5, 5e5))))
    assert extreme.of(0) == pytest.approx(0.5, abs=2e-3)
    assert BestDraw("beta", ((4, (1.0, 2.0)),)).of(4) == 1.0


def test_units_lean_on_all_rewards_while_few_seeds_were_tried_twice() -> None:
    assert standardise({}).scale == float("inf")
    assert standardise(seeds([3.0])).scale == float("inf")
    once = standardise(seeds([0.0], [2.0]))
    assert once.centre == 1.0
    assert once.scale == pytest.approx(2**0.5)
    often = standardise(seeds([0.0, 2.0] * 50, [100.0, 102.0] * 50))
    assert often.scale == pytest.approx((200 / 199 + 2513 / 199) ** 0.5, rel=0.01)


def test_the_last_reason_belongs_to_the_strategy_that_was_asked_last() -> None:
    one, two = UCB(), UCB()
    with pytest.raises(SelectionError, match="call select"):
        one.get_reason()
    one.select([3], {}, CONTEXT)
    two.select([4], {}, CONTEXT)
    assert two.get_reason().seed_idx == 4
    with pytest.raises(SelectionError, match="no other strategy in between"):
        one.get_reason()


def test_a_strategy_without_state_takes_none() -> None:
    UCB().load_state_dict({})
    with pytest.raises(ConfigError, match="'ucb' keeps no state, but was given weights"):
        UCB().load_state_dict({"weights": [1]})
