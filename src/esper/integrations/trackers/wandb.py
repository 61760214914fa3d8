"""Weights & Biases: scalars of the present run, or of a fresh one, online or offline."""

from collections.abc import Mapping
from typing import Any, final

from esper.integrations.requirements import require

require("wandb", "0.17", extra="wandb")

import wandb  # noqa: E402 (checked above)

_EPOCH = "esper/epoch"


@final
class WandB:
    """Logs into ``wandb.run``, or begins a run with the given arguments of ``wandb.init``."""

    def __init__(self, **init: Any) -> None:
        self._own = wandb.run is None
        self.run: Any = wandb.run or wandb.init(**init)
        self.run.define_metric("esper/*", step_metric=_EPOCH)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Note scalars by name at a step, which is an axis of its own."""
        self.run.log({**scalars, _EPOCH: step})

    def close(self) -> None:
        """End a run that was begun here."""
        if self._own:
            self.run.finish()
