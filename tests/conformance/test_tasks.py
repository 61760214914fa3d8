from pathlib import Path

import pytest
from typing_extensions import override

import esper.tasks
from esper.tasks import TASKS
from esper.tasks.base import Task
from esper.testing.task_laws import TaskLaws


class TestEveryTask(TaskLaws):
    @pytest.fixture(params=TASKS.names())
    @override
    def task(self, request: pytest.FixtureRequest) -> Task:
        return TASKS.create(request.param)


def test_every_file_of_the_folder_is_in_the_table() -> None:
    folder = Path(esper.tasks.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert {TASKS.load(name).__module__ for name in TASKS.names()} == {
        f"esper.tasks.{stem}" for stem in files
    }
    assert all(TASKS.load(name).name == name for name in TASKS.names())
    assert all("\n" not in TASKS.load(name).description for name in TASKS.names())
