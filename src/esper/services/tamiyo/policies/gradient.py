"""Gradient policy: kernels wherever they would help, of the kind and width that would most.

A kernel is zero at birth, so all that it can do first is follow its gradient. The gradient's norm,
or for a linear map of low rank each singular value, is what a step of given size gains, as Adam's;
divided by the parameters it says where, and on which kind, the budget buys most. One pass places
all kernels of a round; ``docs/decisions/0042`` has the evidence.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import isfinite
from typing import final

from typing_extensions import override

from esper.contracts.health import GraftRequest
from esper.contracts.site import Site
from esper.services.tamiyo.policies.base import LayerGrowth, Policy, Situation

ENOUGH = 2.0
"""Standard errors that the kernels of a round must be worth for another round to begin."""


_Arm = tuple[str, str]
"""Site and blueprint."""


@dataclass(frozen=True, slots=True)
class _Share:
    """Part of the budget that a kernel gets: parameters, and the promise of its units."""

    parameters: int
    promise: float


@final
@dataclass(frozen=True)
class GradientPolicy(Policy):
    """Budget shared out over sites and blueprints, unit by unit, by what the gradient promises.

    Kernels come in rounds, placed at once: the first has ``growth.kernel_share`` of the budget,
    each of the others doubles what is there. Another begins when the kernels of the last have been
    judged, if together they are worth more than their error.

    Decides from one situation alone; keeps nothing between two calls. A site that the pass says
    nothing of promises gradient times input for each kernel.

    Source:
        Hu et al. (2021), LoRA, section 7.3 (few directions are amplified); Evci et al. (2022),
        GradMax, section 3 (singular vectors of this gradient).
    """

    name = "gradient"
    when = "for frozen, pretrained hosts: one gradient pass says where, and how many ranks"

    @override
    def decide(self, now: Situation) -> tuple[GraftRequest | None, str]:
        waiting = self._reason_to_wait(now) or self.used_up(now)
        if waiting:
            return None, waiting
        left = self._round(now) - now.used
        prices = {
            (name, blueprint): price
            for name, record in now.records.items()
            if not record.objection
            for blueprint, price in _kinds(record).items()
            if 0 < price <= left
        }
        shares = _share_out(prices, _promises(now, prices), left)
        if not shares:
            return None, f"no layer can take a kernel of the {left} parameters that are left"
        best = max(shares, key=lambda arm: shares[arm].promise)
        (layer_name, blueprint), share = best, shares[best]
        total = sum(one.promise for one in shares.values())
        kind = f" ({blueprint})" if blueprint else ""
        layers = len({name for name, _ in shares})
        reason = (
            f"layer {layer_name} gets {share.parameters} of {left} parameters{kind}, for "
            f"{share.promise / total:.0%} of the gradient that kernels in {layers} layer(s) "
            "can follow"
        )
        request = GraftRequest(
            site=Site.parse(layer_name),
            epoch=now.epoch,
            urgency=share.promise / total,
            kernel_budget=share.parameters,
            reason=reason,
            blueprint=blueprint,
        )
        return request, reason

    @override
    def used_up(self, now: Situation) -> str:
        if now.worth is not None and not _active(now):
            gain, stderr = now.worth
            if not gain > ENOUGH * stderr:
                return (
                    f"more would not help: the last kernels together are worth {gain:+.4f} ± "
                    f"{stderr:.4f} of held-out loss, not more than {ENOUGH:g} standard errors"
                )
        return super().used_up(now)

    def _reason_to_wait(self, now: Situation) -> str:
        growth, active = self.growth, _active(now)
        if now.epoch + 1 < growth.warmup_epochs:
            return f"warming up until epoch {growth.warmup_epochs - 1}"
        if active >= growth.max_active:
            return f"{active} graft(s) under way, which is the limit"
        since = now.epoch - now.last_graft_epoch if now.last_graft_epoch is not None else None
        if active and since is not None and since < growth.train_epochs + growth.blend_epochs:
            return f"{active} kernel(s) of a round are under way"
        return ""

    def _round(self, now: Situation) -> int:
        """Parameters that all kernels may have at the end of this round: about twice as many."""
        level = max(1.0, self.growth.kernel_share * self.budget)
        while level < min(1.5 * (now.used - now.under_way), self.budget):
            level *= 2
        return min(int(level), self.budget)


def _active(now: Situation) -> int:
    return sum(record.active for record in now.records.values())


def _kinds(record: LayerGrowth) -> Mapping[str, int]:
    """Smallest kernels by blueprint; under the empty name if nothing is known of blueprints."""
    if record.kinds or record.active:
        return record.kinds
    return {"": record.smallest_kernel or 0}


def _promises(now: Situation, arms: Collection[_Arm]) -> dict[_Arm, list[float]]:
    """Promise of each unit of the kernels that may grow, descending."""
    known = now.promises()
    bounds = {
        signal.layer_name: (signal.gradient_rms or 0.0) * (signal.input_rms or 0.0)
        for signal in now.signals
    }
    found = {}
    for arm in arms:
        name, blueprint = arm
        if name in bounds:
            values = [*known.get(name, {}).get(blueprint, ())] or [bounds[name]]
            found[arm] = [value for value in values if isfinite(value) and value > 0]
    return {arm: values for arm, values in found.items() if values}


def _share_out(
    prices: Mapping[_Arm, int], promises: Mapping[_Arm, list[float]], budget: int
) -> dict[_Arm, _Share]:
    """Buy units, the best for its price first, until the budget is used up."""
    heap = [(-values[0] / prices[arm], arm, 0) for arm, values in promises.items()]
    heapify(heap)
    shares: dict[_Arm, _Share] = {}
    while heap:
        _, arm, unit = heappop(heap)
        if prices[arm] > budget:
            continue
        budget -= prices[arm]
        had = shares.get(arm, _Share(0, 0.0))
        values = promises[arm]
        shares[arm] = _Share(had.parameters + prices[arm], had.promise + values[unit])
        if unit + 1 < len(values):
            heappush(heap, (-values[unit + 1] / prices[arm], arm, unit + 1))
    return shares
