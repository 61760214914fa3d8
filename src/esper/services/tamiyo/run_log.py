"""The event log of one run: what Tamiyo did, in order, as plain facts without a clock.

Operation ids are made of what the event is about, so a run that is resumed and does the same again
writes the same ids, and each counts once. Decisions, outcomes and verdicts are written by the
tracker.
"""

from collections.abc import Sequence
from typing import Any, final

from esper.contracts.events import Event
from esper.contracts.health import GraftRequest, HealthSignal
from esper.services.tamiyo.report import EpochReport, Step, Verdict
from esper.stores.journal import Journal


@final
class RunLog:
    """Writes the events of one run and reads them back.

    Args:
        journal: Where they go.
        scope: Whose history this is.
        run: Name of the run.
    """

    def __init__(self, journal: Journal, *, scope: str, run: str) -> None:
        self.journal = journal
        self.scope = scope
        self.run = run

    def events(self) -> list[Event]:
        """Everything that the run has written so far, in order."""
        return [event for _, event in self.journal.read(scope=self.scope, run=self.run)]

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
        """What the probes found, layer by layer."""
        for signal in signals:
            fields = {name: getattr(signal, name) for name in HealthSignal.__slots__}
            fields["layer"] = fields.pop("layer_name")
            self._write("health", f"{signal.epoch}/{signal.layer_name}", **fields)

    def request(self, request: GraftRequest) -> None:
        """The policy asked for a graft."""
        self._write(
            "request",
            f"{request.epoch}/{request.layer_name}",
            epoch=request.epoch,
            layer=request.layer_name,
            urgency=request.urgency,
            kernel_budget=request.kernel_budget,
            reason=request.reason,
        )

    def refusal(self, request: GraftRequest, error: Exception) -> None:
        """The graft that was asked for did not come about; nothing was touched."""
        self._write(
            "refusal",
            f"{request.epoch}/{request.layer_name}",
            epoch=request.epoch,
            layer=request.layer_name,
            error=type(error).__name__,
            reason=str(error),
        )

    def rollback(self, *, epoch: int, to_epoch: int, why: str) -> None:
        """The host fell ill and was put back to the end of an earlier epoch."""
        self._write("rollback", str(epoch), epoch=epoch, to_epoch=to_epoch, why=why)

    def verdict(self, verdict: Verdict) -> None:
        """A graft ended."""
        self._write(
            "graft",
            verdict.kernel_id,
            **{name: getattr(verdict, name) for name in Verdict.__slots__},
        )

    def epoch(self, report: EpochReport) -> None:
        """An epoch ended."""
        self._write(
            "epoch",
            str(report.epoch),
            epoch=report.epoch,
            holdout_loss=_finite(report.holdout_loss),
            holdout_accuracy=_finite(report.holdout_accuracy),
            used=report.used,
            budget=report.budget,
            decision=report.decision.decision_id if report.decision else None,
            reason=report.reason,
        )

    def _write(self, kind: str, about: str, **data: Any) -> None:
        data = {key: _finite(value) for key, value in data.items()}
        op_id = f"{self.scope}/{self.run}/{kind}/{about}"
        self.journal.append(
            Event(op_id=op_id, kind=kind, scope=self.scope, run=self.run, data=data)
        )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; what is not a number is not there."""
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
