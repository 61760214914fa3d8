"""Watch over the holdout: none of its batches may be trained on."""

import logging
from collections.abc import Iterable
from typing import Any, final

from esper.execution.passes.batches import addresses

logger = logging.getLogger(__name__)


@final
class HoldoutWatch:
    """Says that a batch that was trained on is one of the holdout's, by where its tensors lie.

    Args:
        holdout: Watched if it is kept in memory; of any other nothing is known.
    """

    def __init__(self, holdout: Iterable[Any]) -> None:
        kept = holdout if isinstance(holdout, list | tuple) else ()
        self._held_out = frozenset(map(addresses, kept)) - {()}

    def on_batch(self, batch: Any) -> None:
        """Warn, once, if the batch is one of the holdout."""
        if self._held_out and addresses(batch) in self._held_out:
            self.stop()
            logger.warning(
                "the holdout holds a batch that is trained on, so a kernel that learns it by heart "
                "looks good; give a holdout whose batches on_batch_end never gets"
            )

    def stop(self) -> None:
        """Watch no longer: one epoch has shown every batch."""
        self._held_out = frozenset()
