"""Mover: measures the end of an epoch, rolls back what fell ill, and moves the grafts on."""

import logging
from collections.abc import Sequence
from math import isfinite
from typing import Any, final

from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.governor import Governor
from esper.services.tamiyo.growth.graft import Baseline, Training
from esper.services.tamiyo.growth.grafts import ActiveGrafts
from esper.services.tamiyo.report import Verdict
from esper.services.tamiyo.run_log import RunLog

logger = logging.getLogger(__name__)


@final
class Mover:
    """Takes every graft the step that is due at the end of an epoch, while the host is healthy."""

    def __init__(
        self,
        training: Training,
        grafts: ActiveGrafts,
        governor: Governor,
        log: RunLog,
        aside: Aside,
    ) -> None:
        self.training = training
        self.grafts = grafts
        self.governor = governor
        self.log = log
        self.aside = aside

    def measure(self, epoch: int, verdicts: list[Verdict]) -> Baseline | None:
        """Held-out values, after a rollback if the host fell ill; ``None`` if they fail.

        Args:
            epoch: The epoch that ended.
            verdicts: Those on kernels at fault are added.
        """
        now = self._measure()
        if now is None:
            return None
        ended = self._govern(now, epoch)
        verdicts += ended
        return self._measure() if ended else now

    def move_on(
        self,
        now: Baseline | None,
        epoch: int,
        batches_per_epoch: int,
        *,
        calibration: Sequence[Any],
    ) -> list[Verdict]:
        """As ``ActiveGrafts.move_on``."""
        return self.grafts.move_on(
            now, epoch=epoch, batches_per_epoch=batches_per_epoch, calibration=calibration
        )

    def protect(self, now: Baseline | None, epoch: int) -> None:
        """Keep a healthy state while a kernel blends in."""
        if now is not None and self.grafts.blending and isfinite(now.loss):
            self.governor.keep(now.loss, epoch)
        elif now is not None or not self.grafts.blending:
            self.governor.let_go()

    def _measure(self) -> Baseline | None:
        with self.aside("the measurement of the held-out loss"):
            return self.training.measure()
        return None

    def _govern(self, now: Baseline, epoch: int) -> list[Verdict]:
        """Roll an ill host back; the kernels that were being blended in are at fault."""
        why = self.governor.objection(now.loss)
        if not why:
            return []
        logger.warning("epoch %d: %s; rolled back to epoch %d", epoch, why, self.governor.epoch)
        self.log.rollback(epoch=epoch, to_epoch=self.governor.epoch, why=why)
        self.governor.restore()
        return self.grafts.abandon_blending(f"{why}; the host was rolled back", epoch=epoch)
