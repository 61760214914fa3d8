"""Trackers: where the numbers of every epoch go, beside the event log."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isnan
from typing import Any, Protocol, final, runtime_checkable

from esper.services.tamiyo.report import EpochReport

PREFIX = "esper/"
"""Beginning of the names of all scalars."""


@runtime_checkable
class Tracker(Protocol):
    """Takes the scalars of an epoch, all at once."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Note scalars by name at a step, which is the number of the epoch."""

    def close(self) -> None:
        """Write what waits; nothing is logged afterwards."""


def scalars_of(report: EpochReport) -> dict[str, float]:
    """Numbers of an epoch by name; what was not measured is left out.

    Example:
        >>> report = EpochReport(epoch=0, holdout_loss=0.5, holdout_accuracy=None, used=7,
        ...                      budget=9, steps=(), verdicts=(), decisions=(), reason="")
        >>> scalars_of(report)["esper/holdout_loss"], scalars_of(report)["esper/parameters_grown"]
        (0.5, 7.0)
    """
    kept = sum(verdict.kept for verdict in report.verdicts)
    found = {
        "holdout_loss": report.holdout_loss,
        "holdout_accuracy": report.holdout_accuracy,
        "parameters_grown": report.used,
        "grafts_begun": len(report.decisions),
        "grafts_kept": kept,
        "grafts_culled": len(report.verdicts) - kept,
    }
    for verdict in report.verdicts:
        found[f"reward/{verdict.layer_name}"] = verdict.reward
    numbers = {name: float(value) for name, value in found.items() if value is not None}
    return {PREFIX + name: value for name, value in numbers.items() if not isnan(value)}


@final
class Trackers:
    """Hands the reports of a run to several trackers, each in a context that catches failures."""

    def __init__(
        self,
        trackers: Sequence[Tracker] = (),
        aside: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._trackers = list(trackers)
        self._aside = aside

    def log(self, report: EpochReport) -> None:
        """Log the scalars of an epoch."""
        for tracker in self._trackers:
            with self._aside(f"the tracker {type(tracker).__name__}"):
                tracker.log(scalars_of(report), report.epoch)

    def close(self) -> None:
        """Close all of them."""
        while self._trackers:
            tracker = self._trackers.pop()
            with self._aside(f"the end of the tracker {type(tracker).__name__}"):
                tracker.close()
