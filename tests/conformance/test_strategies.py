from functools import partial

import pytest

from esper.strategies import STRATEGIES, SelectionStrategy
from esper.strategies.thompson import Thompson
from esper.testing.strategy_laws import Make, StrategyLaws


class TestEveryStrategy(StrategyLaws):
    @pytest.fixture(params=STRATEGIES.names())
    def make(self, request: pytest.FixtureRequest) -> Make:
        return partial(STRATEGIES.create, request.param)


class TestThompson(StrategyLaws):
    @pytest.fixture(params=["gaussian", "nig"])
    def make(self, request: pytest.FixtureRequest) -> Make:
        return partial(Thompson, posterior=request.param)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_a_strategy_knows_its_name(name: str) -> None:
    made = STRATEGIES.create(name)
    assert isinstance(made, SelectionStrategy)
    assert made.name == name
