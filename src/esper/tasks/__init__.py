"""Tasks: real data, a host that is too small, and its training.

torch is imported with the first task that is loaded.
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
        "resmlp": "esper.tasks.resmlp:ResMlp",
        "resnet": "esper.tasks.resnet:ResNet",
        "kjv": "esper.tasks.kjv:Kjv",
        "transfer": "esper.tasks.transfer:Transfer",
        "transfer_far": "esper.tasks.transfer:TransferFar",
    },
    group="esper.tasks",
)
