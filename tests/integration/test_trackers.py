"""Trackers: an epoch's scalars arrive in the real TensorBoard, MLflow and Weights & Biases."""

import importlib
import json
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from esper.contracts.errors import ConfigError
from esper.integrations.plain import Growth
from esper.integrations.trackers import TRACKERS
from esper.services.tamiyo.tracking import Tracker
from esper.testing.integration_laws import Toy, adam

pytestmark = pytest.mark.slow

EPOCHS = 6
Read = Callable[[], dict[str, list[tuple[int, float]]]]


def run(*trackers: Tracker) -> list[dict[str, Any]]:
    """Epochs in the event log of a run that ended."""
    model = Toy().model()
    growth = Growth(model, adam(model), **Toy().growth, trackers=trackers)
    for _ in range(EPOCHS):
        for batch in growth.epoch(Toy().train):
            assert batch
    assert growth.tamiyo is not None
    log = [dict(event.data) for event in growth.tamiyo.events() if event.kind == "epoch"]
    growth.tamiyo.close()
    return log


def in_tensorboard(folder: Path) -> tuple[Tracker, Read]:
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415
        EventAccumulator,
    )

    def read() -> dict[str, list[tuple[int, float]]]:
        found = EventAccumulator(str(folder)).Reload()
        names = found.Tags()["scalars"]
        return {n: [(one.step, one.value) for one in found.Scalars(n)] for n in names}

    return TRACKERS.load("tensorboard")(folder), read  # type: ignore[call-arg]


def in_mlflow(folder: Path) -> tuple[Tracker, Read]:
    import mlflow  # noqa: PLC0415

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("growth", artifact_location=str(folder))
    mlflow.set_experiment("growth")
    tracker: Any = TRACKERS.load("mlflow")()

    def read() -> dict[str, list[tuple[int, float]]]:
        client = mlflow.MlflowClient()
        names = client.get_run(tracker.run_id).data.metrics
        return {
            n: [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, n)]
            for n in names
        }

    return tracker, read


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of an offline run: LevelDB's log format behind a header of seven bytes."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    block, header = 32768, 7
    data, at, parts = file.read_bytes(), header, b""
    while at + header <= len(data):
        if block - at % block < header:  # a trailer of zeros
            at += block - at % block
            continue
        size, place = struct.unpack("<HB", data[at + 4 : at + header])
        parts += data[at + header : at + header + size]
        at += header + size
        if place in {1, 4}:  # whole, or the last part
            yield record.FromString(parts)
            parts = b""


def in_wandb(folder: Path) -> tuple[Tracker, Read]:
    import wandb  # noqa: PLC0415

    tracker: Any = TRACKERS.load("wandb")(mode="offline", dir=str(folder), project="growth")  # type: ignore[call-arg]

    def read() -> dict[str, list[tuple[int, float]]]:
        wandb.teardown()  # W&B's own process writes the file, and ends after its runs
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        found: dict[str, list[tuple[int, float]]] = {}
        for record in wandb_records(file):
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for name in row.keys() - {"esper/epoch"}:
                found.setdefault(name, []).append((row["esper/epoch"], row[name]))
        return found

    return tracker, read


PLACES = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    before = os.getcwd()  # noqa: PTH109 (put back as it was)
    monkeypatch.chdir(tmp_path)
    yield
    os.chdir(before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", TRACKERS.names())
def test_every_epoch_arrives(name: str, tmp_path: Path) -> None:
    tracker, read = PLACES[name](tmp_path)
    assert isinstance(tracker, Tracker)
    log = run(tracker)
    found = read()
    losses = found["esper/holdout_loss"]
    assert [step for step, _ in losses] == list(range(EPOCHS))
    assert [value for _, value in losses] == pytest.approx(
        [epoch["holdout_loss"] for epoch in log], rel=1e-5
    )
    grown = [value for _, value in found["esper/parameters_grown"]]
    assert grown == [epoch["used"] for epoch in log]


def test_a_tracker_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, scalars: Mapping[str, float], step: int) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            raise OSError("no space left")

    assert [epoch["epoch"] for epoch in run(Broken())] == list(range(EPOCHS))
    assert "the tracker Broken failed: OSError: no space left" in caplog.text


def test_what_is_no_tracker_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracker is 'tensorboard'; give objects with log"):
        run("tensorboard")  # type: ignore[arg-type]
