"""Real problems that come with Esper: data, a host that is too small, and how it is trained.

Importing this room does not import torch; the first task that is loaded does.
"""

from typing import TYPE_CHECKING

from esper.registry import Registry

if TYPE_CHECKING:
    from esper.tasks.base import Task

TASKS: "Registry[Task]" = Registry(
    "task",
    {
        "letter": "esper.tasks.letter:Letter",
        "digits": "esper.tasks.digits:Digits",
        "mnist1d": "esper.tasks.mnist1d:Mnist1d",
        "mnist5k": "esper.tasks.mnist5k:Mnist5k",
    },
    group="esper.tasks",
)
