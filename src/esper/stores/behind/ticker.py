"""Ticker: the thread that works for a journal, as long as there is something to do."""

from threading import Event, Lock, Thread
from typing import Protocol, final
from weakref import ReferenceType, ref

_TICK_S = 0.05
_IDLE_TICKS = 100
_DOZE_S = 5.0


class Worked(Protocol):
    """Work that a ticker does."""

    @property
    def stays(self) -> bool:
        """True if the thread must not end when it is idle."""

    def turn(self) -> bool:
        """Do what is due; true if something is left."""


@final
class Ticker:
    """Thread that calls ``turn`` every 50 ms, or at once after `hurry`; idle, it ends after 5 s.

    To look at an empty queue now and then costs less than to wake a thread at each choice. The
    thread does not keep the object alive that it works for.
    """

    def __init__(self, worked: Worked) -> None:
        self._worked = ref(worked)
        self._wake = Event()
        self._beginning = Lock()
        self._ticking = self._dozing = False

    def runs(self) -> bool:
        """Begin the thread if there is none; false if none can begin."""
        if self._dozing:
            self._wake.set()
        if self._ticking:
            return True
        with self._beginning:  # so that there is one thread
            if self._ticking:
                return True
            thread = Thread(
                target=_tick, args=(self, self._worked), name="esper-journal", daemon=True
            )
            self._ticking = True
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._ticking = False
        return self._ticking

    def hurry(self) -> None:
        """Take the next turn at once."""
        self._wake.set()

    def wait(self, seconds: float) -> None:
        """Sleep until the next turn."""
        self._dozing = seconds > _TICK_S
        self._wake.wait(seconds)
        self._dozing = False
        self._wake.clear()

    def stopped(self) -> None:
        """Note that the thread ends."""
        self._ticking = False


def _tick(ticker: Ticker, worked: ReferenceType[Worked]) -> None:
    idle, seconds = 0, _TICK_S
    try:
        while True:
            ticker.wait(seconds)
            one = worked()
            if one is None:
                return
            idle = 0 if one.turn() else idle + 1
            if idle >= _IDLE_TICKS and not one.stays:
                break
            seconds = _DOZE_S if idle >= _IDLE_TICKS else _TICK_S
            del one
    finally:
        ticker.stopped()
    one.turn()  # what came while this thread seemed to go on
