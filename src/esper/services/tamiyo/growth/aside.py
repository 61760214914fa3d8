"""Work on the side of a training: what fails there is logged with its cause and stops nothing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import TracebackException
from typing import final

import torch

logger = logging.getLogger(__name__)


@final
class Attempt:
    """Outcome of one piece of work on the side.

    Attributes:
        why: What failed and its cause, one sentence; empty while all is well.
        reason: What the work has to say if it does not fail.
    """

    def __init__(self) -> None:
        self.why = self.reason = ""

    @property
    def failed(self) -> bool:
        """True if an exception ended the work."""
        return bool(self.why)


@final
class Aside:
    """Catches what fails on the side of the user's training; the only place that does.

    Each kind of failure is logged once, as a warning with its traceback. What is no ``Exception``,
    as ``KeyboardInterrupt`` and ``SystemExit``, passes through.

    Example:
        >>> aside = Aside()
        >>> with aside("the probe") as attempt:
        ...     attempt.why = ""
        >>> attempt.failed
        False
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[Attempt]:
        """Run the block; if it raises, say so in the attempt instead.

        Args:
            what: Subject of the sentence "... failed", as ``"the probe"``.
        """
        attempt = Attempt()
        try:
            with torch.inference_mode(False):  # a loop may evaluate, and call us, in that mode
                yield attempt
        except Exception as error:
            told = TracebackException.from_exception(error, limit=0)  # whose str() never fails
            cause = str(told).strip().partition("\n")[0]
            kind = type(error).__name__
            attempt.why = f"{what} failed: {kind}: {cause}" if cause else f"{what} failed: {kind}"
            if (what, kind) not in self._told:
                self._told.add((what, kind))
                logger.warning("%s; the training goes on", attempt.why, exc_info=True)
