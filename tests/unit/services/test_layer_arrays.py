"""LayerArrays beyond what every strategy does over arrays: units, windows, bad input, reasons."""

from typing import Any

import numpy as np
import pytest

from esper.contracts.errors import ConfigError, EsperError, MeasurementError, SelectionError
from esper.contracts.performance import SeedPerformanceMetrics
from esper.services.tamiyo.columns import WindowColumns
from esper.services.tamiyo.layer_arrays import LayerArrays
from esper.services.tamiyo.strategies import STRATEGIES
from esper.services.tamiyo.strategies._base import standardise


def _ucb(layers: int = 4, seeds: int = 3, **settings: Any) -> LayerArrays:
    return LayerArrays(STRATEGIES.create("ucb"), layers, seeds, **settings)


def test_units_are_those_of_standardise_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    columns = WindowColumns(200, 6, 20, 0.9)
    rewards: list[list[list[float]]] = [[[] for _ in range(6)] for _ in range(200)]
    every = np.arange(200)
    for _ in range(25):
        seeds, values = rng.integers(0, 6, 200), rng.normal(7, 0.02, 200)
        columns.learn(every, seeds, values)
        for layer in range(200):
            rewards[layer][seeds[layer]].append(float(values[layer]))
        for layer, own in enumerate(rewards):
            if max(map(len, own)) > 20:
                continue
            records = columns.metrics(layer)
            units = standardise(records)
            assert (columns.centre_L[layer], columns.scale_L[layer]) == units[:2]
            by_hand = standardise(
                {
                    seed: SeedPerformanceMetrics(seed, "", rewards=list(values))
                    for seed, values in enumerate(own)
                    if values
                }
            )
            assert units == pytest.approx(by_hand, rel=1e-9)


def test_beyond_the_window_old_outcomes_fade() -> None:
    rng, window = np.random.default_rng(1), 10
    columns, rewards = WindowColumns(1, 1, window, 0.9), rng.standard_normal(60)
    place = np.array([0])
    for reward in rewards:
        columns.learn(place, place, np.array([reward]))
    share = 2 / (window + 1)
    weights = np.full(60, share) * (1 - share) ** np.arange(59, -1, -1)
    weights[:window] = (1 - share) ** (60 - window) / window  # the plain mean that it began with
    mean = float(weights @ rewards)
    assert weights.sum() == pytest.approx(1)
    assert columns.mean_KL[0, 0] == pytest.approx(mean)
    spread = float(weights @ (rewards - mean) ** 2)
    assert columns.m2_KL[0, 0] == pytest.approx(window * spread)
    assert columns.metrics(0)[0].count == window
    assert columns.metrics(0)[0].outcomes == 60


def test_a_faded_mean_is_as_old_and_as_uncertain_as_a_window() -> None:
    window = 20
    ages = np.arange(2000)
    weights = (2 / (window + 1)) * (1 - 2 / (window + 1)) ** ages
    assert weights @ ages == pytest.approx((window - 1) / 2)
    assert np.square(weights).sum() == pytest.approx(1 / window)


def test_ten_million_outcomes_of_any_size_leave_finite_scores() -> None:
    for size in (1e-12, 1e12):
        many, every = _ucb(layers=5000, seeds=4, seed=1), np.arange(5000)
        rng = np.random.default_rng(0)
        for number in range(2000):
            many.update_many(every, np.full(5000, number % 4), size * rng.standard_normal(5000))
        many.select_many()
        assert np.isfinite(many.scores).all()


def test_pending_choices_are_counted_answered_and_withdrawn() -> None:
    many = _ucb(layers=2, seeds=2)
    first, second = many.select_many(), many.select_many()
    assert (first + second == [1, 1]).all()
    assert (many.pending == 1).all()
    many.update_many([0, 0, 0], [1, 1, 1], [0.1, 0.2, 0.3])  # more outcomes than choices
    many.withdraw_many([1], [0])
    assert many.pending.tolist() == [[1, 0], [0, 1]]
    for _ in range(140):
        many.select_many()
    assert many.pending.max() == 32
    # Nobody who asks to spread gets the same seed twice.
    assert (many.select_many(many.pending == 0) == -1).all()


def test_choosing_for_some_layers_leaves_the_others_alone() -> None:
    many, viable = _ucb(), np.zeros((4, 3), dtype=bool)
    viable[2, 1] = True
    assert many.select_many(viable).tolist() == [-1, -1, 1, -1]
    assert many.pending.sum() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [0], [float("nan")]), r"rewards_N\[0\] is nan"),
        (([0, 1], [0, 0], [1.0, float("-inf")]), r"rewards_N\[1\] is -inf"),
        (([0], [0], [1e101]), "must be finite"),
        (([0], [0], ["much"]), "must be numbers"),
        (([0, 4], [0, 0], [1.0, 1.0]), r"layers_N\[1\] is 4; there is no such layer, .* 0 to 3"),
        (([-1], [0], [1.0]), r"layers_N\[0\] is -1"),
        (([0], [3], [1.0]), r"seeds_N\[0\] is 3; there is no such seed"),
        (([0], [-1], [1.0]), r"seeds_N\[0\] is -1"),
        (([0.5], [0], [1.0]), "type float64"),
        (([True], [0], [1.0]), "type bool"),
        (([[0]], [0], [1.0]), r"shape \(1, 1\)"),
        ((0, [0], [1.0]), r"layers_N is of shape \(\)"),
        (([0, 1], [0], [1.0]), "2 layers but 1 seeds"),
        (([0, 1], [0, 1], [1.0]), r"rewards_N is of shape \(1,\); it must be \(2,\)"),
        (([0, [1]], [0, 1], [1.0]), "layers_N is no array"),
    ],
)
def test_bad_outcomes_are_named_and_teach_nothing(
    arguments: tuple[Any, Any, Any], message: str
) -> None:
    many = _ucb()
    many.update_many([0, 1], many.select_many()[:2], [0.1, 0.2])
    before = many.state_dict()
    with pytest.raises((SelectionError, MeasurementError), match=message):
        many.update_many(*arguments)
    assert many.state_dict() == before


@pytest.mark.parametrize(
    "viable",
    [np.ones((3, 4), dtype=bool), np.ones((4, 3)), np.ones(4, dtype=bool), [[True], [True, False]]],
)
def test_wrong_viable_seeds_are_refused_before_anything_is_chosen(viable: Any) -> None:
    many = _ucb()
    before = many.state_dict()
    with pytest.raises(SelectionError, match="viable_LK"):
        many.select_many(viable)
    assert many.state_dict() == before


def test_no_outcomes_are_fine() -> None:
    many = _ucb()
    many.update_many([], [], [])
    assert many.state_dict() == _ucb().state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"seeds": 2.0}, "seeds is 2.0"),
        ({"layers": True}, "layers is True"),
        ({"seed": None}, "seed is None"),
        ({"window_size": 0}, "window_size is 0"),
        ({"decay_factor": 0}, "decay_factor is 0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ucb(**settings)


def test_a_strategy_without_arrays_is_refused_naming_those_that_have_them() -> None:
    with pytest.raises(ConfigError, match=r"'linucb' cannot .* at once; .*ucb, thompson.* can"):
        LayerArrays(STRATEGIES.create("linucb"), 4, 3)
    with pytest.raises(ConfigError, match="give an object"):
        LayerArrays("ucb", 4, 3)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        STRATEGIES.create("linucb").score_layers(
            None, None, np.random.default_rng(0), np.zeros((3, 4))
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "thompson"}, "strategy 'thompson', not of 'ucb'"),
        ({"layers": 5}, "layers 5, not of 4"),
        ({"window_size": 7}, "window_size 7, not of 20"),
        ({"decay_factor": 0.5}, "decay_factor 0.5, not of 0.9"),
        ({"calls": -1}, "calls of the state is -1"),
        ({"arrays": {}}, "array 'outcomes_KL'"),
        ({"arrays": None}, "array 'outcomes_KL'"),
    ],
)
def test_another_state_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    many = _ucb()
    many.update_many([0, 1], [1, 2], [0.1, 0.2])
    before = many.state_dict()
    with pytest.raises(ConfigError, match=message):
        many.load_state_dict(before | change)
    damaged = before | {"arrays": before["arrays"] | {"mean_KL": [float("nan")] * 12}}
    with pytest.raises(ConfigError, match="mean_KL"):
        many.load_state_dict(damaged)
    assert many.state_dict() == before


def test_reasons_are_the_strategys_own_where_only_ties_are_drawn() -> None:
    many, every = _ucb(seeds=2), np.arange(4)
    for seed, reward in ((0, 1.0), (1, 3.0), (1, 5.0)):
        many.update_many(every, np.full(4, seed), np.full(4, reward))
    many.select_many()
    reason = many.explain(3)
    assert "drawn" not in reason.reason
    assert reason.score == pytest.approx(many.scores[3].max())
    assert many.propensities_of(3) == {0: 0.0, 1: 1.0}


def test_reasons_of_draws_have_the_draws_as_scores() -> None:
    many = LayerArrays(STRATEGIES.create("thompson", posterior="gaussian"), 4, 2, seed=5)
    for seed, reward in ((0, 1.0), (1, 3.0)):
        many.update_many(np.arange(4), np.full(4, seed), np.full(4, reward))
    many.select_many()
    reason = many.explain(0)
    assert dict(reason.scores) == dict(enumerate(many.scores[0].tolist()))
    assert reason.score == max(reason.scores.values())
    assert "highest draw" in reason.reason
    with pytest.raises(SelectionError, match="'thompson' draws its scores"):
        _ = many.propensities
    assert sum(reason.propensities.values()) == pytest.approx(1, abs=0.01)


def test_reasons_are_refused_where_they_could_not_be_true() -> None:
    many = _ucb()
    for when in ("before", "after"):
        with pytest.raises(SelectionError, match=r"ask between select_many\(\) and update_many"):
            many.explain(0)
        if when == "before":
            many.update_many([0], many.select_many()[:1], [0.1])
    assert many.explain(1).score == np.inf
    many.select_many(np.zeros((4, 3), dtype=bool))
    with pytest.raises(SelectionError, match="no viable seed"):
        many.explain(0)
    with pytest.raises(EsperError, match="no such layer"):
        many.explain(4)
