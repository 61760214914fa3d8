"""Heuristic policy: grow at a plateau, where there were fewest grafts.

*When*: after a warm-up, between cooldowns, while the budget lasts, and once the held-out loss falls
by less than a given share an epoch: what the host can learn by itself, it should learn first.
*Where*: the layer that has had the fewest grafts; among equals, the one that promises most. A
kernel is zero at birth, so the first thing that it can do for the loss is the product of what it
reads and of the gradient at what it writes; the promise of a layer is therefore
``gradient_rms * input_rms`` (the bound on the gradient of a new linear kernel, in the spirit of
GradMax, Evci et al. 2022, section 3). It says where the next step is steep, not where capacity is
missing, so it breaks ties only (docs/decisions/0012).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

from typing_extensions import override

from esper.contracts.health import GraftRequest, HealthSignal
from esper.contracts.site import Site
from esper.services.tamiyo.policies.base import LayerGrowth, Policy, Situation


@final
@dataclass(frozen=True)
class HeuristicPolicy(Policy):
    """Wait for a plateau; then the layer with the fewest grafts, ties by gradient times input.

    Decides from one situation alone; keeps nothing between two calls.
    """

    name = "heuristic"
    when = "the default: fewest grafts first, once the host stops improving by itself"

    @override
    def decide(self, now: Situation) -> tuple[GraftRequest | None, str]:
        promises, limits, reason = self.sites(now)
        if not promises:
            return None, reason
        grafts = {name: now.records[name].grafts for name in promises}
        layer_name = min(promises, key=lambda name: (grafts[name], -promises[name]))
        total = sum(promises.values())
        urgency = promises[layer_name] / total if total > 0 else 1 / len(promises)
        record = now.records[layer_name]
        reason = (
            f"layer {layer_name} has had fewest grafts, {record.judged} ({record.kept} kept), and "
            f"{urgency:.0%} of gradient x input over {len(promises)} layer(s) that can grow; "
            f"{_trend_in_words(loss_trend(now.losses, self.growth.plateau_window))}"
        )
        request = GraftRequest(
            site=Site.parse(layer_name),
            epoch=now.epoch,
            urgency=urgency,
            kernel_budget=limits[layer_name],
            reason=reason,
        )
        return request, reason

    def sites(self, now: Situation) -> tuple[Mapping[str, float], Mapping[str, int], str]:
        """Sites that may grow now and their promises, the kernel budgets, or why none may."""
        waiting = self._reason_to_wait(now)
        if waiting:
            return {}, {}, waiting
        limits = self._limits(now)
        promises = self._promises(now, limits)
        return promises, limits, "" if promises else self._nothing_fits(now, limits)

    @override
    def used_up(self, now: Situation) -> str:
        limits, known = self._limits(now), [r.smallest_kernel for r in now.records.values()]
        if any(known) and not any(limits.values()):
            return self._nothing_fits(now, limits)
        return super().used_up(now)

    def _limits(self, now: Situation) -> dict[str, int]:
        """Parameters that the next kernel of each layer may cost; 0: none is worth its while."""
        wanted, left = self.kernel_budget(now.records), self.budget - now.used
        limit = min(wanted, left) if left >= wanted / 2 else 0
        return {
            name: limit if even is None else even if even <= left else 0
            for name, even in ((name, record.even_kernel) for name, record in now.records.items())
        }

    def _reason_to_wait(self, now: Situation) -> str:
        growth = self.growth
        if now.epoch + 1 < growth.warmup_epochs:
            return f"warming up until epoch {growth.warmup_epochs - 1}"
        active = sum(record.active for record in now.records.values())
        if active >= growth.max_active:
            return f"{active} graft(s) under way, which is the limit"
        if now.last_graft_epoch is not None:
            rested = now.epoch - now.last_graft_epoch
            if rested < growth.cooldown_epochs:
                return f"cooling down for {growth.cooldown_epochs - rested} more epoch(s)"
        trend = loss_trend(now.losses, growth.plateau_window)
        if trend is None:
            return f"the trend of the held-out loss is not known: it is {_in_words(now.losses[-1])}"
        if trend < -growth.plateau_threshold:
            return f"the host still learns by itself: {_trend_in_words(trend)}"
        return ""

    def _promises(self, now: Situation, limits: Mapping[str, int]) -> dict[str, float]:
        promises = {}
        for signal in now.signals:
            name = signal.layer_name
            record, promise = now.records.get(name), _promise(signal)
            if record and promise is not None and not _objection(record, limits[name]):
                promises[name] = promise
        return promises

    def _nothing_fits(self, now: Situation, limits: Mapping[str, int]) -> str:
        records = now.records.values()
        sizes = [r.smallest_kernel for r in records if r.smallest_kernel is not None]
        if not sizes and not any(r.objection for r in records):
            return "no blueprint of any seed fits its layer"
        left = f"{self.budget - now.used} of {self.budget} parameters are left"
        if sizes and not any(limits.values()) and all(r.even_kernel is not None for r in records):
            return f"all widths have grown by the same factor, as far as the budget goes: {left}"
        wanted = self.kernel_budget(now.records)
        limit = max(limits.values(), default=0)
        if sizes and max(limit, wanted) < min(sizes):
            return f"the budget is too small: {left}, and the smallest kernel needs {min(sizes)}"
        if sizes and limit < min(sizes):
            return f"the budget is used up: {left}, and a kernel is worth {wanted}"
        objections = [
            f"{signal.layer_name} {why}"
            if _promise(signal) is not None or now.records[signal.layer_name].objection
            else f"{signal.layer_name} has no finite gradient"
            for signal in now.signals
            for why in [_objection(now.records[signal.layer_name], limits[signal.layer_name])]
        ]
        return f"no layer can grow now: {', '.join(objections)}" if objections else "no other can"


def _promise(signal: HealthSignal) -> float | None:
    if signal.gradient_rms is None or signal.input_rms is None:
        return None
    promise = signal.gradient_rms * signal.input_rms
    return promise if isfinite(promise) else None


def _objection(record: LayerGrowth, limit: int) -> str:
    if record.objection:
        return record.objection
    if record.smallest_kernel is None:
        return "fits none of its blueprints"
    if record.active:
        return "is growing"
    if record.even_kernel == 0:
        return "has grown by as much as the budget allows all"
    return f"needs {record.smallest_kernel}" if record.smallest_kernel > limit else ""


def loss_trend(losses: Sequence[float], window: int) -> float | None:
    """Relative change of the loss per epoch, over the last ``window`` epochs; < 0 improves.

    Returns:
        ``(last / first) ** (1 / epochs) - 1``; of a loss that is not always positive, its mean
        change per epoch over its largest magnitude. ``None`` if there are fewer than two losses,
        or one of them is NaN or infinite.

    Example:
        >>> loss_trend([1.0, 0.9, 0.81], window=2)
        -0.1
    """
    recent = losses[-(window + 1) :]
    if len(recent) < 2 or not all(map(isfinite, recent)):
        return None
    first, last, epochs = recent[0], recent[-1], len(recent) - 1
    if min(recent) > 0:
        return round(float((last / first) ** (1 / epochs) - 1), 12)
    largest = max(map(abs, recent))
    return round((last - first) / epochs / largest, 12) if largest else 0.0


def _in_words(loss: float) -> str:
    if isfinite(loss):
        return f"{loss:.4g}"
    return f"{loss}, and a finite one is waited for; look for NaN in the holdout and in its losses"


def _trend_in_words(trend: float | None) -> str:
    if trend is None:
        return "the loss trend is not known"
    return f"the held-out loss {'falls' if trend < 0 else 'rises'} {abs(trend):.1%} an epoch"
