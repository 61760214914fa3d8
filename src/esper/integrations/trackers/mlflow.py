"""MLflow: metrics of the active run, or of a fresh one, in batches."""

import time
from collections.abc import Mapping
from typing import Any, final

from esper.integrations.requirements import require

require("mlflow-skinny", "3.0", extra="mlflow")

import mlflow  # noqa: E402 (checked above)
from mlflow.entities import Metric  # noqa: E402


@final
class MLflow:
    """Logs into the active run of MLflow, or begins one.

    A metric alone takes a transaction, 24 ms and more in SQLite; here an epoch's take one together,
    and MLflow writes them in a thread of its own.
    """

    def __init__(self) -> None:
        active = mlflow.active_run()
        self._own = active is None
        run: Any = active or mlflow.start_run()
        self.run_id: str = run.info.run_id
        self._client = mlflow.MlflowClient()
        self._waiting: list[Any] = []

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Note scalars by name at a step."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in scalars.items()]
        waiting = self._client.log_batch(self.run_id, metrics=metrics, synchronous=False)
        self._waiting = [one for one in (*self._waiting[-8:], waiting) if one is not None]

    def close(self) -> None:
        """Write what waits, and end a run that was begun here."""
        for one in self._waiting:
            one.wait()
        mlflow.flush_async_logging()
        if self._own:
            mlflow.end_run()
