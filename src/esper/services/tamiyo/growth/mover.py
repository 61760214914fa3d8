"""Mover: measures the end of an epoch, rolls back what fell ill, and moves the grafts on."""

import logging
from math import isfinite
from typing import final

from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.governor import Governor
from esper.services.tamiyo.growth.graft import Baseline, Training
from esper.services.tamiyo.growth.grafts import ActiveGrafts
from esper.services.tamiyo.growth.progress import Progress
from esper.services.tamiyo.report import Verdict
from esper.services.tamiyo.run_log import RunLog

logger = logging.getLogger(__name__)


@final
class Mover:
    """Takes every graft the step that is due at the end of an epoch, while the host is healthy."""

    def __init__(
        self,
        training: Training,
        progress: Progress,
        grafts: ActiveGrafts,
        governor: Governor,
        log: RunLog,
        aside: Aside,
    ) -> None:
        self.training = training
        self.progress = progress
        self.grafts = grafts
        self.governor = governor
        self.log = log
        self.aside = aside

    def move_on(self, epoch: int, verdicts: list[Verdict], *, finished: bool) -> Baseline | None:
        """Measure, roll back what fell ill, and take every graft the step that is due.

        Args:
            epoch: The epoch that ended.
            verdicts: Those on grafts that ended are added.
            finished: Only measure.

        Returns:
            Held-out values; ``None`` if they cannot be measured.
        """
        now = self._measure()
        ended = [] if now is None else self._govern(now, epoch)
        verdicts += ended
        now = self._measure() if ended else now
        self.progress.losses += [] if now is None else [now.loss]
        if not finished:
            verdicts += self._move(now, epoch, self.progress.batches_of_epoch)
        return now

    def end(self, epoch: int) -> list[Verdict]:
        """Judge what trains with the host before its time; nothing where each waits for its own."""
        growth = self.grafts.config.growth
        if growth.judge == "each" or growth.train_epochs or not self.grafts.grafts:
            return []
        now, due = self._measure(), epoch + growth.blend_epochs
        return [] if now is None else self._move(now, due, 1)

    def _move(self, now: Baseline | None, epoch: int, batches: int) -> list[Verdict]:
        calibration = self.progress.calibration
        if now is not None:
            self.grafts.judge.prepare(self.grafts.grafts, epoch, calibration)
        return self.grafts.move_on(
            now, epoch=epoch, batches_per_epoch=batches, calibration=calibration
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
