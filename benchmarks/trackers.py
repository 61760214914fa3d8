"""Time that a tracker takes of an epoch: TensorBoard, MLflow in SQLite, Weights & Biases offline.

Beside MLflow's own way, a call for each metric. The first epoch, in which files and threads are
made, is given by itself. Takes half a minute.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from esper.integrations.trackers import TRACKERS
from esper.services.tamiyo.tracking import Tracker

EPOCHS = 40
SCALARS = {f"esper/scalar{index}": float(index) for index in range(9)}
"""As many as an epoch with three verdicts has."""


class Singly:
    """MLflow with a call for each metric."""

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Log one after another."""
        import mlflow  # noqa: PLC0415 (an extra)

        for name, value in scalars.items():
            mlflow.log_metric(name, value, step=step)


def rows() -> list[tuple[str, str, str]]:
    """Milliseconds of an epoch, median, largest and first, by tracker."""
    os.environ |= {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with TemporaryDirectory() as name:
        folder = Path(name)
        import mlflow  # noqa: PLC0415

        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("growth", artifact_location=name)
        mlflow.set_experiment("growth")
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"folder": folder},
            "wandb": {"mode": "offline", "dir": name},
        }
        found = []
        for kind in TRACKERS.names():
            tracker: Tracker = TRACKERS.load(kind)(**options.get(kind, {}))
            found.append((kind, _times(tracker.log), "<= 100 ms"))
            if kind == "mlflow":
                found.append(("mlflow, a call for each metric", _times(Singly().log), "baseline"))
            tracker.close()
    return found


def _times(log: Callable[[dict[str, float], int], None]) -> str:
    times = []
    for epoch in range(EPOCHS):
        started = perf_counter()
        log(SCALARS, epoch)
        times.append(1000 * (perf_counter() - started))
    first, *later = times
    return f"{median(later):.2g} ms, at most {max(later):.2g}; the first {first:.2g}"
