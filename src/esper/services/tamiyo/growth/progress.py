"""Progress: epochs, batches and held-out losses of a run so far, and the latest batches."""

from collections import deque
from collections.abc import Mapping
from operator import index
from typing import Any, final

from esper.contracts.errors import ConfigError

_BATCHES = 8


@final
class Progress:
    """How far a run is.

    Args:
        keeps_statistics: Whether the model has statistics that a pass in training mode changes.
        keeps_batches: Whether the latest batches are needed for something else.

    Attributes:
        epoch: Epoch that ended last; -1 before the first.
        losses: Held-out loss at the end of every epoch that was measured.
        batches: Batches so far.
        batches_of_epoch: Batches since the last epoch ended.
        recent: Latest batches of the epoch: eight if they are needed, else one.
    """

    def __init__(self, keeps_statistics: bool, keeps_batches: bool = False) -> None:
        self.epoch = -1
        self.losses: list[float] = []
        self.batches = 0
        self.batches_of_epoch = 0
        many = keeps_statistics or keeps_batches
        self.recent: deque[Any] = deque(maxlen=_BATCHES if many else 1)
        self._keeps_statistics = keeps_statistics

    @property
    def calibration(self) -> list[Any]:
        """Batches to estimate statistics from; none for a model without."""
        return list(self.recent) if self._keeps_statistics else []

    def on_batch(self, batch: Any) -> None:
        """Count a batch."""
        self.batches += 1
        self.batches_of_epoch += 1
        self.recent.append(batch)

    def on_epoch_end(self, epoch: Any) -> int:
        """An epoch ends; its number, which may be given as an integer of NumPy or PyTorch.

        Raises:
            ConfigError: if it is no whole number, or not larger than the last one.
        """
        try:
            number = index(epoch)
        except TypeError:
            raise ConfigError(
                f"epoch is {epoch!r}; it must be a whole number, as in on_epoch_end(3)"
            ) from None
        if number <= self.epoch:
            raise ConfigError(
                f"epoch {number} ended before: the last one was {self.epoch}. Go on counting, as "
                f"by on_epoch_end({self.epoch + 1} + epoch), or call on_evaluation(), which "
                "numbers by itself; for another training call finish() and make another Tamiyo. "
                "With growth.every on_batch_end ends the epochs: leave on_epoch_end out"
            )
        self.epoch = number
        return number

    def begin_epoch(self) -> None:
        """The next epoch begins; batches before, which no checkpoint has, must not matter."""
        self.batches_of_epoch = 0
        self.recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Counts and losses."""
        return {
            "epoch": self.epoch,
            "losses": list(self.losses),
            "batches": self.batches,
            "batches_of_epoch": self.batches_of_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`; other entries do not matter."""
        self.epoch, self.losses = state["epoch"], list(state["losses"])
        self.batches = state["batches"]
        self.batches_of_epoch = state.get("batches_of_epoch", 0)  # 0.1.0 was saved between epochs
