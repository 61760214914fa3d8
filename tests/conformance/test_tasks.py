import pytest
from typing_extensions import override

from esper.tasks import TASKS
from esper.tasks.base import Task
from esper.testing.task_laws import TaskLaws


class TestEveryTask(TaskLaws):
    @pytest.fixture(params=TASKS.names())
    @override
    def task(self, request: pytest.FixtureRequest) -> Task:
        return TASKS.create(request.param)


def test_a_task_knows_its_name() -> None:
    assert all(TASKS.load(name).name == name for name in TASKS.names())
    assert all("\n" not in TASKS.load(name).description for name in TASKS.names())
