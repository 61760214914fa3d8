"""Work on the side of a training: what fails there is logged with its cause and stops nothing."""

import logging
from traceback import TracebackException
from types import TracebackType
from typing import Self, final

import torch

from esper.contracts.errors import ConfigError, MeasurementError, ReplicaError

logger = logging.getLogger(__name__)


@final
class Attempt:
    """One piece of work on the side; the context in which it is done.

    A class and no generator: one is entered after every batch, and should cost next to nothing.

    Attributes:
        why: What failed and its cause, one sentence; empty while all is well.
        reason: What the work has to say if it does not fail.
    """

    def __init__(self, what: str, told: set[tuple[str, str]]) -> None:
        self.why = self.reason = ""
        self._what, self._told = what, told
        self._mode: torch.inference_mode | None = None

    @property
    def failed(self) -> bool:
        """True if an exception ended the work."""
        return bool(self.why)

    def __enter__(self) -> Self:
        if torch.is_inference_mode_enabled():  # a loop may evaluate, and call us, in that mode
            self._mode = torch.inference_mode(False)
            self._mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._mode is not None:
            self._mode.__exit__(kind, error, traceback)
        if not isinstance(error, Exception) or isinstance(error, ReplicaError):
            return False
        told = TracebackException.from_exception(error, limit=0)  # whose str() never fails
        cause, name = str(told).strip().partition("\n")[0], type(error).__name__
        self.why = (
            f"{self._what} failed: {name}: {cause}" if cause else f"{self._what} failed: {name}"
        )
        if (self._what, name) not in self._told:
            self._told.add((self._what, name))
            says_all = isinstance(error, ConfigError | MeasurementError)
            logger.warning(
                "%s; the training goes on", self.why, exc_info=None if says_all else error
            )
        return True


@final
class Aside:
    """Catches what fails on the side of the user's training; the only place that does.

    Each kind of failure is logged once, as a warning with its traceback, but for a `ConfigError`
    and a `MeasurementError`, which say all. What is no ``Exception``, as ``KeyboardInterrupt`` and
    ``SystemExit``, passes through, and so does a `ReplicaError`: to go on alone would be to train
    another model.

    Example:
        >>> aside = Aside()
        >>> with aside("the probe") as attempt:
        ...     attempt.why = ""
        >>> attempt.failed
        False
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, what: str) -> Attempt:
        """Context that runs a block; if it raises, the attempt says so instead.

        Args:
            what: Subject of the sentence "... failed", as ``"the probe"``.
        """
        return Attempt(what, self._told)
