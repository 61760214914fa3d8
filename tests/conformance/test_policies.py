from functools import partial

import pytest

from esper.services.tamiyo.policies import POLICIES
from esper.testing.policy_laws import Make, PolicyLaws


class TestEveryPolicy(PolicyLaws):
    @pytest.fixture(params=POLICIES.names())
    def make(self, request: pytest.FixtureRequest) -> Make:
        return partial(POLICIES.create, request.param)


@pytest.mark.parametrize("name", POLICIES.names())
def test_a_policy_knows_its_name_and_when_to_use_it(name: str) -> None:
    made = POLICIES.create(name)
    assert (made.name, bool(made.when)) == (name, True)
