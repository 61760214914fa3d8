"""Placebos that were judged, and how many of them would have been kept: a check of what is kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from esper.contracts.events import Event
from esper.records.interval import share_interval

EXPECTED = 0.01
"""Share of placebos that may pass."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Placebos that passed the rule for what is kept, of those that were judged.

    Attributes:
        judged: Their number.
        passed: Those that would have been kept, had they been other kernels.
        share: ``passed / judged``; ``None`` if none was judged.
        low: Lower end of its Wilson 95 % interval. The placebos of one audition are judged on the
            same data, so that in truth it is wider.
        high: Upper end, likewise.
    """

    judged: int
    passed: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, ends: Iterable[Mapping[str, Any]]) -> "Passed":
        """Count the placebos among audition events, or among ends of grafts."""
        found = [end["passed"] for end in ends if end.get("passed") is not None]
        judged, passed = len(found), sum(found)
        if not judged:
            return cls(judged=0, passed=0, share=None, low=None, high=None)
        low, high = share_interval(passed, judged)
        return cls(judged=judged, passed=passed, share=passed / judged, low=low, high=high)

    @property
    def too_many(self) -> bool:
        """True if the whole interval is above the expected share."""
        return self.low is not None and self.low > EXPECTED

    def text(self) -> str:
        """Count and share.

        Example:
            >>> Passed.of([{"passed": True}, *[{"passed": False}] * 9]).text()
            '1 of 10, 10.0 % [1.8, 40.4]'
        """
        if self.share is None or self.low is None or self.high is None:
            return "none judged"
        ends = f"[{self.low * 100:.1f}, {self.high * 100:.1f}]"
        return f"{self.passed} of {self.judged}, {self.share * 100:.1f} % {ends}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Placebos:
    """Placebos of runs.

    Attributes:
        shadow: In auditions, after their training in isolation.
        blended: At the verdict, where the best of an audition and those without one come to.
    """

    shadow: Passed
    blended: Passed

    def __bool__(self) -> bool:
        return bool(self.shadow.judged or self.blended.judged)

    @property
    def too_many(self) -> bool:
        """True if more of them pass than is expected."""
        return self.shadow.too_many or self.blended.too_many

    def text(self) -> str:
        """One sentence."""
        return (
            f"placebos that would have been kept: in the shadow {self.shadow.text()}; "
            f"blended in {self.blended.text()}; {EXPECTED * 100:g} % is expected"
        )


def of_events(events: Iterable[Event]) -> Placebos:
    """Placebos in an event log."""
    data: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        data.setdefault(event.kind, []).append(event.data)
    return Placebos(
        shadow=Passed.of(data.get("audition", [])), blended=Passed.of(data.get("graft", []))
    )
