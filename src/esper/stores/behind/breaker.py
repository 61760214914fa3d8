"""Circuit breaker before a store that may fail, and the time that callers may wait for it."""

import time
from collections.abc import Callable
from typing import final

from esper.contracts.errors import StoreError

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SHARE_WAITING = 0.25
_FREE_S = 0.005


@final
class Breaker:
    """Closed while the store works; open after a failure; half open when its pause is over.

    The pause doubles from 0.5 s to 30 s. While it lasts nothing is tried; after it one try decides.

    Args:
        clock: Monotonic seconds.

    Attributes:
        error: Failure that opened it; ``None`` while it is closed.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.error: StoreError | None = None
        self._clock = clock
        self._failures = 0
        self._next_try = 0.0

    def allows(self) -> bool:
        """Test whether the store may be tried now."""
        return self.error is None or self._clock() >= self._next_try

    def half_open(self) -> None:
        """End the pause."""
        self._next_try = 0.0

    def close(self) -> bool:
        """Note a success; true if it was open before."""
        was_open, self.error, self._failures = self.error is not None, None, 0
        return was_open

    def open(self, error: StoreError) -> bool:
        """Note a failure; true if it is the first."""
        first, self.error = self.error is None, error
        pause = min(_FIRST_PAUSE_S * 2 ** min(self._failures, 16), _LONGEST_PAUSE_S)
        self._failures += 1
        self._next_try = self._clock() + pause
        return first


@final
class Patience:
    """Seconds that callers may wait for a store: some at once, and a quarter of the time.

    Waits up to 5 ms, as a store takes that works, do not count.

    Args:
        most_s: Longest wait.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._left = most_s
        self._at = time.monotonic()

    def left(self) -> float:
        """Seconds that may be waited now."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * _SHARE_WAITING, self._most_s)
        self._at = now
        return max(self._left, _FREE_S)

    def spend(self, seconds: float) -> None:
        """Note that a caller waited."""
        self._left -= max(seconds - _FREE_S, 0.0)
