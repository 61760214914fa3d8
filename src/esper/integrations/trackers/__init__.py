"""Trackers of experiments: each takes the scalars of an epoch in one call. One file, one line here.

Give them to ``Tamiyo(..., trackers=[...])``, or to the ``Growth`` of a framework.

Example:
    >>> TRACKERS.names()
    ['tensorboard', 'mlflow', 'wandb']
"""

from typing import TYPE_CHECKING

from esper.registry import Registry

if TYPE_CHECKING:
    from esper.services.tamiyo.tracking import Tracker

__all__ = ["TRACKERS"]

TRACKERS: "Registry[Tracker]" = Registry(
    "tracker",
    {
        "tensorboard": "esper.integrations.trackers.tensorboard:TensorBoard",
        "mlflow": "esper.integrations.trackers.mlflow:MLflow",
        "wandb": "esper.integrations.trackers.wandb:WandB",
    },
    group="esper.trackers",
)
