"""The laws of integrations, in the real frameworks; one that is missing is a failure."""

from importlib import import_module

import pytest

from esper.integrations import INTEGRATIONS
from esper.testing.integration_laws import IntegrationLaws, Train
from tests.frameworks import OF_THEIR_OWN

pytestmark = [
    pytest.mark.trains,
    pytest.mark.slow,
    *map(pytest.mark.filterwarnings, OF_THEIR_OWN),
]


class TestEveryIntegration(IntegrationLaws):
    @pytest.fixture(params=INTEGRATIONS.names())
    def train(self, request: pytest.FixtureRequest) -> Train:
        found: Train = import_module(f"tests.frameworks.{request.param}").train
        return found


@pytest.mark.parametrize("name", INTEGRATIONS.names())
def test_an_integration_knows_its_name_and_when_to_use_it(name: str) -> None:
    made = INTEGRATIONS.load(name)
    assert (made.name, bool(made.when)) == (name, True)
