"""RunLog: the events that tell what a run did, in order, as plain facts without a clock.

Each is named after its subject, so a run that is resumed and does the same again writes the same
ids, and each counts once. The events that a history is made of (decisions, outcomes, ends of
grafts) are written by the tracker, with the same writer.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, final

from esper.contracts.events import Event, event_data
from esper.contracts.health import GraftRequest, HealthSignal
from esper.execution.replicas.replicas import Replicas
from esper.records.event_writer import Bindings, EventWriter
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.report import EpochReport, Step
from esper.services.tamiyo.tracking import Trackers


@final
class RunLog:
    """Tells the steps of one run to its event writer, and reads the log back.

    Args:
        writer: Writes the events.
        trackers: Get the scalars of every epoch too; they are no part of the log.
        facts: What the run is, as its ``run`` event tells.

    Attributes:
        begun: Whether the ``run`` event was written.
    """

    def __init__(
        self,
        writer: EventWriter,
        trackers: Trackers | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.writer = writer
        self.trackers = trackers or Trackers()
        self.begun = False
        self._facts = dict(facts or {})
        self._ended = False

    def events(self) -> list[Event]:
        """Everything that the run has written so far, in order."""
        return self.writer.read_run()

    def take_up(
        self,
        state: Mapping[str, Any],
        tracker: PerformanceTracker,
        bindings: Bindings,
        replicas: Replicas,
        *,
        keep_name: bool,
    ) -> None:
        """Go back to the place in the log of an engine's state, tracker included.

        Of several processes rank 0 alone has the store; it tells the others what the run did.
        """
        past = state["log"]

        def go_back(to: Mapping[str, Any]) -> None:
            position, reads = self.writer.load_state_dict(to, keep_name=keep_name)
            tracker.rewind(position, reads=reads, bindings=bindings)

        def lead() -> list[Any]:
            go_back(past)
            told = [] if replicas.alone else self.writer.read_run(past["run"])
            return [event_data(event) for event in told]

        events = replicas.share(lead)
        if not replicas.leads:
            go_back({**past, "events": events})
        same_run = self.writer.run == past["run"]
        self.begun = same_run and state.get("begun", False)  # version 0.1.0 told none

    def begin(self) -> None:
        """The first epoch ends: tell what runs. Again does nothing."""
        if not self.begun:
            self.begun = True
            self._write("run", "", **self._facts)

    def end(self, how: str, *, epoch: int) -> None:
        """The run is ``"finished"`` or ``"closed"``; told once, of a run that had an epoch."""
        if self.begun and not self._ended:
            self._ended = True
            self._write("end", str(epoch), epoch=epoch, how=how)
            self.writer.write_clock({"epoch": epoch, "end": how, "time": time.time()})

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
            _of_request(request),
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
            _of_request(request),
            epoch=request.epoch,
            layer=str(request.site),
            error=type(error).__name__,
            reason=str(error),
        )

    def rollback(self, *, epoch: int, to_epoch: int, why: str) -> None:
        """The host fell ill and was put back to the end of an earlier epoch."""
        self._write("rollback", str(epoch), epoch=epoch, to_epoch=to_epoch, why=why)

    def epoch(self, report: EpochReport, alphas: Mapping[str, float] | None = None) -> None:
        """An epoch ended; ``alphas`` are those of kernels that are being blended in."""
        self.trackers.log(report)
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
            **({"alphas": dict(alphas)} if alphas else {}),
        )
        self.writer.write_clock({"epoch": report.epoch, "time": time.time()})

    def _write(self, kind: str, subject: str, **data: Any) -> None:
        self.writer.write_about(kind, subject, finite(data))


def finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON can hold them: NaN and infinity become ``None``."""
    return {
        key: None if isinstance(value, float) and value - value != 0.0 else value
        for key, value in data.items()
    }


def _of_request(request: GraftRequest) -> str:
    """Name of a request; one epoch may ask for several kinds of kernel at a site."""
    kind = f"/{request.blueprint}" if request.blueprint else ""
    return f"{request.epoch}/{request.site}{kind}"
