from functools import partial
from pathlib import Path

import pytest

from esper.services.tamiyo import strategies
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


def test_every_file_of_the_folder_is_in_the_table() -> None:
    folder = Path(strategies.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert {STRATEGIES.load(name).__module__.rpartition(".")[2] for name in STRATEGIES.names()} == (
        files
    )
