"""Learned policy: grow where the seed sits that is expected to earn most.

*When* is the heuristic's. *Where*: seeds of all sites that may grow are compared by what each is
expected to earn, relative to an average seed of the run at that moment; of frozen layers one
gradient pass says it before any was tried (`esper.services.tamiyo.growth.promised`). Those of any
site that may still beat the best one audition beside it, and the best goes on. Of very many the
site is drawn, one that may have the best seed more often than others.
"""

from dataclasses import dataclass, replace
from typing import final

from typing_extensions import override

from esper.contracts.health import GraftRequest
from esper.contracts.site import Site
from esper.records.draws import Draws
from esper.services.tamiyo.drawn import draw_arms
from esper.services.tamiyo.policies.base import Policy, Situation
from esper.services.tamiyo.policies.heuristic import HeuristicPolicy

MANY = 24
"""Seeds of all sites, more than a run has grafts, from among which the site is drawn."""


@final
@dataclass(frozen=True)
class LearnedPolicy(Policy):
    """Wait as the heuristic does; then the site of the seed that is expected to earn most.

    It needs a strategy that learns from auditions, as ``auto``; with another it is the heuristic.
    """

    name = "learned"
    when = "auditions teach, in this run or in earlier ones, which sites pay"
    compares_sites = True

    @override
    def decide(self, now: Situation) -> tuple[GraftRequest | None, str]:
        heuristic = HeuristicPolicy(growth=self.growth, seed=self.seed)
        request, reason = heuristic.decide(now)
        if request is None:
            return request, reason
        promises, limits, _ = heuristic.sites(now)
        worths = now.worths({name: limits[name] for name in promises})
        arms = range(len(worths.arms))
        if not arms:
            return request, reason
        wanted = str(request.site)  # what the heuristic would take, among equals
        best = max(arms, key=lambda at: (worths.means[at], worths.arms[at][0] == wanted))
        how = "the most"
        if len(arms) > MANY:
            # The highest mean would be taken again and again, and most others never tried.
            rng = Draws(self.seed, "learned", worths.choices)
            best, how = worths.arms.index(draw_arms(worths, 1, rng)[0]), "drawn as the best"
        layer, seed = worths.arms[best]
        why = (
            f"seed {seed} of layer {layer} is worth {worths.means[best]:.2f} ± "
            f"{worths.sd(best):.2f} times what an average seed earns now, {how} of {len(arms)}"
        )
        site = Site.parse(layer)
        budget = limits[layer]  # kernels of one size are compared
        rivals = [name for name in promises if name != layer and limits[name] == budget]
        request = replace(
            request,
            site=site,
            kernel_budget=budget,
            rivals=tuple(map(Site.parse, rivals)),
            reason=why,
        )
        return request, why
