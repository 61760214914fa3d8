"""Outcome of one training: size, test scores, work, and the way there."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of one training.

    Attributes:
        parameters: Parameters of the network that is left in the end.
        epochs: Epochs it was trained for.
        accuracy: Test accuracy at the end, in [0, 1].
        loss: Mean test loss at the end, in nats.
        flops: Floating-point operations of the training, everything in, as `counting` counts them.
        seconds: Processor time of the training alone, nothing counted and nothing evaluated on top.
        curve: Validation accuracy at the end of each epoch.
        spent: ``flops`` so far at the end of each epoch.
        kept: Blueprints of the kernels that were kept, in order.
        judged: Number of grafts that were judged.
    """

    parameters: int
    epochs: int
    accuracy: float
    loss: float
    flops: int
    seconds: float
    curve: tuple[float, ...]
    spent: tuple[int, ...]
    kept: tuple[str, ...] = ()
    judged: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Outcome":
        """Outcome from the JSON data of its fields."""
        given: dict[str, Any] = {field.name: data[field.name] for field in fields(cls)}
        for name in ("curve", "spent", "kept"):
            given[name] = tuple(given[name])
        return cls(**given)
