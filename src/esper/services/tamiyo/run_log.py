"""RunLog: the events that tell what a run did, in order, as plain facts without a clock.

Each is named after its subject, so a run that is resumed and does the same again writes the same
ids, and each counts once. The events that a history is made of (decisions, outcomes, ends of
grafts) are written by the tracker, with the same writer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from esper.contracts.events import Event
from esper.contracts.health import GraftRequest, HealthSignal
from esper.records.event_writer import EventWriter
from esper.services.tamiyo.report import EpochReport, Step


@final
class RunLog:
    """Tells the steps of one run to its event writer, and reads the log back."""

    def __init__(self, writer: EventWriter) -> None:
        self.writer = writer

    def events(self) -> list[Event]:
        """Everything that the run has written so far, in order."""
        return self.writer.read_run()

    def step(self, step: Step, *, epoch: int, kernel_id: str | None, parameters: int) -> None:
        """A seed changed its state at the end of an epoch."""
        self._write(
            "lifecycle",
            f"{epoch}/{step.layer_name}:{step.seed_idx}/{step.new}",
            epoch=epoch,
            layer=step.layer_name,
            seed=step.seed_idx,
            blueprint=step.blueprint,
            kernel_id=kernel_id,
            parameters=parameters,
            old=step.old,
            new=step.new,
            why=step.why,
        )

    def health(self, signals: Sequence[HealthSignal]) -> None:
        """Health of every layer, as probes found it."""
        for signal in signals:
            fields = {name: getattr(signal, name) for name in HealthSignal.__slots__}
            fields["layer"] = fields.pop("layer_name")
            self._write("health", f"{signal.epoch}/{signal.layer_name}", **fields)

    def request(self, request: GraftRequest) -> None:
        """The policy asked for a graft."""
        self._write(
            "request",
            f"{request.epoch}/{request.site}",
            epoch=request.epoch,
            layer=str(request.site),
            urgency=request.urgency,
            kernel_budget=request.kernel_budget,
            reason=request.reason,
        )

    def refusal(self, request: GraftRequest, error: Exception) -> None:
        """The graft that was asked for did not come about; nothing was touched."""
        self._write(
            "refusal",
            f"{request.epoch}/{request.site}",
            epoch=request.epoch,
            layer=str(request.site),
            error=type(error).__name__,
            reason=str(error),
        )

    def rollback(self, *, epoch: int, to_epoch: int, why: str) -> None:
        """The host fell ill and was put back to the end of an earlier epoch."""
        self._write("rollback", str(epoch), epoch=epoch, to_epoch=to_epoch, why=why)

    def epoch(self, report: EpochReport) -> None:
        """An epoch ended."""
        self._write(
            "epoch",
            str(report.epoch),
            epoch=report.epoch,
            holdout_loss=report.holdout_loss,
            holdout_accuracy=report.holdout_accuracy,
            used=report.used,
            budget=report.budget,
            decision=report.decision.decision_id if report.decision else None,
            reason=report.reason,
            **({"over": report.over} if report.over else {}),
        )

    def _write(self, kind: str, subject: str, **data: Any) -> None:
        self.writer.write_about(kind, subject, finite(data))


def finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON can hold them: NaN and infinity become ``None``."""
    return {
        key: None if isinstance(value, float) and value - value != 0.0 else value
        for key, value in data.items()
    }
