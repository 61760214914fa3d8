"""Grower: asks the policy where to grow, and begins the grafts that it asks for."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from math import ceil
from types import MappingProxyType
from typing import Any, final

from esper.blueprints import BLUEPRINTS
from esper.contracts.audition import FADING, Worths
from esper.contracts.errors import KernelError, NoViableSeedError
from esper.contracts.health import GraftRequest, HealthSignal
from esper.contracts.seeds import LayerSpec
from esper.contracts.selection import Decision, SelectionContext
from esper.contracts.site import Site
from esper.execution.kernel import Kernel
from esper.execution.passes.probes import promises
from esper.execution.seeded import Seeded
from esper.services.tamiyo.blueprint_integration import (
    BlueprintIntegration,
    free_blueprints,
    known_spec,
    smallest_kernels,
)
from esper.services.tamiyo.cohort import may_audition, worths_of
from esper.services.tamiyo.growth.auditions import surplus_of
from esper.services.tamiyo.growth.graft import Baseline
from esper.services.tamiyo.growth.grafts import ActiveGrafts
from esper.services.tamiyo.growth.promised import Promised, relative
from esper.services.tamiyo.growth.proposal import Proposal
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.policies import LayerGrowth, Situation
from esper.services.tamiyo.policies.base import Policy, Promises
from esper.services.tamiyo.run_log import RunLog
from esper.widths.evenly import even_units
from esper.widths.kasmina_width import KasminaWidth

logger = logging.getLogger(__name__)


@final
class Grower:
    """Turns the health of the layers into the next grafts, or into a reason why there is none.

    Args:
        policy: Decides where and when.
        integration: Chooses the seed and loads its kernel.
        grafts: Takes the graft on.
        tracker: Outcomes so far.
        log: Where requests and refusals are noted.
        layers: The wrapped layers by name.
        left_out: Layers that cannot grow, and why.

    Attributes:
        last_epoch: Epoch of the latest graft; ``None`` before the first.
        over: Why no graft can begin any more; empty while one can, or is under way.
    """

    def __init__(
        self,
        policy: Policy,
        integration: BlueprintIntegration,
        grafts: ActiveGrafts,
        *,
        tracker: PerformanceTracker,
        log: RunLog,
        layers: Mapping[str, Seeded],
        left_out: Mapping[str, str],
    ) -> None:
        self.policy = policy
        self.integration = integration
        self.grafts = grafts
        self.tracker = tracker
        self.log = log
        self.layers = layers
        self.left_out = left_out
        self.last_epoch: int | None = None
        self.over = ""
        self._even: dict[str, int] | None = None
        self._sizes: dict[str, tuple[LayerSpec, dict[str, int]]] = {}

    @property
    def reads_promises(self) -> bool:
        """True if gradients of frozen layers say what their kernels may earn."""
        return self.policy.compares_sites and any(it.frozen for it in self.layers.values())

    @property
    def used(self) -> int:
        """Parameters of all kernels, absorbed or under way."""
        grown = sum(layer.grown_parameters for layer in self.layers.values())
        return grown - surplus_of(self.grafts.grafts)

    @property
    def kernel_budget(self) -> int:
        """Parameters that the next kernel may cost, were the whole budget left."""
        return self.policy.kernel_budget({name: self._record_of(name) for name in self.layers})

    def kernel_limit(self, layer_name: str) -> int:
        """Parameters that the next kernel of a layer may cost, were the whole budget left."""
        even = self._record_of(layer_name).even_kernel
        return self.kernel_budget if even is None else even

    def objection(self, layer_name: str) -> str:
        """Reason why a layer cannot grow now; empty if it can."""
        layer = self.layers[layer_name]
        unready = "was not called yet" if layer.spec is None else ""
        changed = layer.misfit(self.grafts.training.model)
        return self.left_out.get(layer_name, "") or unready or changed

    def grow(
        self,
        health: Sequence[HealthSignal],
        losses: Sequence[float],
        now: Baseline,
        epoch: int,
        batches: Sequence[Any] = (),
    ) -> tuple[tuple[Decision, ...], str]:
        """Begin the grafts that the policy asks for, as many as may, or say why none begins.

        Args:
            health: Of every layer, over the epoch that ended.
            losses: Held-out loss at the end of every epoch so far, this one last.
            now: Held-out values at its end.
            epoch: The epoch that ended.
            batches: Recent training batches.
        """
        signals = {signal.layer_name: signal for signal in health}
        self.log.health(list(signals.values()))
        self.tracker.refresh()
        begun: list[Decision] = []
        reasons: list[str] = []
        found = cache(partial(self._promises, batches))
        promised = cache(lambda: relative(found, self.layers) if self.reads_promises else {})
        tried: dict[str, set[str]] = {}
        rested_since = self.last_epoch
        while len(begun) < self.policy.growth.starts:
            made = self._agreed(
                lambda: self._propose(
                    replace(
                        self._situation(epoch, rested_since, losses, signals, tried),
                        promises=found,
                        worths=partial(self._worths, epoch, signals, promised),
                    ),
                    signals,
                    promised,
                )
            )
            if made.request is None:
                reasons.append(made.reason)
                break
            # What refuses must not keep the others from growing.
            decision, reason = self._begin(made, now, batches)
            name = str(made.request.site)
            tried.setdefault(name, set()).add(made.request.blueprint)
            if not (made.request.blueprint and self._record_of(name, tried[name]).kinds):
                del signals[name]
            begun += [] if decision is None else [decision]
            reasons.append(reason)
        return tuple(begun), "; ".join(reasons)

    def _agreed(self, make: Callable[[], Proposal]) -> Proposal:
        """Grafts that rank 0 makes; the others load the kernels that it chose."""
        replicas, kept = self.grafts.training.replicas, list[Proposal]()

        def told() -> Any:
            kept.append(make())
            return None if replicas.alone else kept[0].to_json()

        data = replicas.share(told)
        if kept:
            return kept[0]
        found = Proposal.from_json(data, self.layers)
        for decision, kernel in found.chosen:
            self.integration.follow_now(self.layers[decision.layer_name], decision, kernel)
        return found

    def look_ahead(self, epoch: int) -> None:
        """Find out whether growth is over, at the end of this epoch; it may begin again later."""
        under_way = epoch < 0 or self.grafts.grafts

        def over() -> str:
            ahead = None if under_way else self._situation(epoch, self.last_epoch, [], {})
            return "" if ahead is None else self.policy.over(ahead)

        self.over = self.grafts.training.replicas.share(over)

    @property
    def rests(self) -> bool:
        """True while nothing is measured and probed, since growth is over."""
        return bool(self.over) and not self.policy.growth.measure_on

    def _situation(
        self,
        epoch: int,
        last_graft_epoch: int | None,
        losses: Sequence[float],
        signals: Mapping[str, HealthSignal],
        tried: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> Situation:
        return Situation(
            epoch=epoch,
            losses=losses,
            signals=list(signals.values()),
            records={name: self._record_of(name, tried.get(name, ())) for name in self.layers},
            used=self.used,
            under_way=sum(graft.parameters for graft in self.grafts.grafts),
            last_graft_epoch=last_graft_epoch,
            worth=self.grafts.judge.worth,
        )

    def _promises(self, batches: Sequence[Any]) -> Promises:
        training = self.grafts.training
        used = batches if self.policy.compares_sites else batches[-1:]
        return promises(training.model, self.layers, loss_fn=training.loss_fn, batches=used)

    def _propose(
        self,
        now: Situation,
        health: Mapping[str, HealthSignal],
        promised: Callable[[], Promised],
    ) -> Proposal:
        """The next graft that the policy asks for, its kernel chosen and loaded."""
        request, reason = self.policy.ask(now)
        if request is None:
            return Proposal(request=None, reason=reason)
        self.log.request(request)
        layer = self.layers[str(request.site)]
        try:
            expected = promised()
            chosen = self._audition(request, health, expected) or [
                self.integration.graft_now(
                    layer,
                    request,
                    health=health[layer.name],
                    promises=expected.get(layer.name, {}),
                )
            ]
        except (NoViableSeedError, KernelError) as error:
            logger.warning("no graft at epoch %d: %s", request.epoch, error)
            self.log.refusal(request, error)
            faulty = isinstance(error, KernelError)
            return Proposal(request=request, reason=str(error), faulty=faulty)
        return Proposal(request=request, reason=request.reason, chosen=tuple(chosen))

    def _begin(
        self, made: Proposal, now: Baseline, batches: Sequence[Any]
    ) -> tuple[Decision | None, str]:
        assert made.request is not None
        if made.faulty:
            self.grafts.count_end(str(made.request.site), kept=False)
        begun, reason = list[Decision](), made.reason
        for decision, kernel in made.chosen:
            objection = self.grafts.begin(decision, kernel, now, batches)
            reason = objection or reason
            if not objection:
                begun.append(decision)
                self._time(decision, kernel)
        if not begun:
            return None, reason
        self.last_epoch = made.request.epoch
        return begun[0], made.reason

    def _audition(
        self,
        request: GraftRequest,
        health: Mapping[str, HealthSignal],
        promised: Promised,
    ) -> list[tuple[Decision, Kernel]]:
        """Kernels that train side by side first; none if one seed is to be chosen at once."""
        growth, selection = self.policy.growth, self.grafts.config.seed_selection
        always, most = selection.audition == "always", selection.most_auditioned
        if not self.auditions:
            return []
        needed = max(1, growth.train_epochs) + growth.blend_epochs
        if growth.epochs is not None and request.epoch + needed >= growth.epochs:
            return []
        layers = [self.layers[str(site)] for site in (request.site, *request.rivals)]
        scale = self._fading({layer.name: request.kernel_budget for layer in layers})
        return self.integration.audition_now(
            layers,
            request,
            health=health,
            promises=promised,
            scale=scale,
            always=always,
            most=most,
        )

    def _worths(
        self,
        epoch: int,
        health: Mapping[str, HealthSignal],
        promised: Callable[[], Promised],
        budgets: Mapping[str, int],
    ) -> Worths:
        """Expected worths of the seeds of layers, with kernels within these budgets."""
        asked: dict[str, tuple[Sequence[int], SelectionContext]] = {}
        known = self._may_audition and may_audition(self.integration.selector)
        for name, budget in budgets.items() if known else ():
            request = GraftRequest(
                site=Site.parse(name), epoch=epoch, urgency=0.0, kernel_budget=budget, reason=""
            )
            with suppress(NoViableSeedError, KernelError):
                asked[name] = self.integration.question(
                    self.layers[name], request, health.get(name), promised().get(name, {})
                )
        return worths_of(self.integration.selector, asked, self._fading(budgets))

    @property
    def auditions(self) -> bool:
        """True if seeds may train side by side first, of which the best goes on."""
        mode = self.grafts.config.seed_selection.audition
        able = may_audition(self.integration.selector, always=mode == "always")
        return mode != "never" and self._may_audition and able

    @property
    def _may_audition(self) -> bool:
        """False by ``auto`` without isolation, since an audition would delay the graft."""
        mode = self.grafts.config.seed_selection.audition
        return mode != "auto" or self.policy.growth.train_epochs > 0

    def _fading(self, budgets: Mapping[str, int]) -> dict[str, float]:
        """Factors on the worths of layers, for the kernels that they have."""
        return {
            name: FADING ** (self.layers[name].grown_parameters / budget)
            for name, budget in budgets.items()
        }

    def _time(self, decision: Decision, kernel: Kernel) -> None:
        if kernel.cost is not None and kernel.cost.latency_ms is not None:
            self.tracker.record_timing(
                decision.layer_name,
                decision.seed_idx,
                latency_ms=kernel.cost.latency_ms,
                decision=decision,
                stored=False,
            )

    def _record_of(self, layer_name: str, tried: Collection[str] = ()) -> LayerGrowth:
        judged, kept = self.grafts.ended.get(layer_name, (0, 0))
        kinds = self._kinds_of(layer_name)
        sizes, free = list(kinds.values()), free_blueprints(self.layers[layer_name])
        return LayerGrowth(
            kept=kept,
            judged=judged,
            active=self.grafts.count(layer_name),
            smallest_kernel=sizes[0] if sizes else None,
            roomy_kernel=sizes[-1] if sizes else 0,
            even_kernel=self._even_kernel_of(layer_name) if sizes else None,
            kinds={name: kinds[name] for name in kinds if name in free and name not in tried},
            objection=self.objection(layer_name),
        )

    def _even_kernel_of(self, layer_name: str) -> int | None:
        """Parameters of the kernel with which a width keeps step; ``None`` if it need not."""
        layer, growth = self.layers[layer_name], self.policy.growth
        if not (growth.evenly and isinstance(layer, KasminaWidth)):
            return None
        if self._even is None:
            able = [it for name, it in self.layers.items() if name not in self.left_out]
            widths = [it for it in able if isinstance(it, KasminaWidth)]
            self._even = even_units(widths, self.policy.budget)
        goal = self._even[layer_name]
        units = min(
            goal - layer.units - layer.units_under_way,
            ceil(growth.kernel_share * (goal - layer.born)),
        )
        blueprint = BLUEPRINTS.create(layer.seed_blueprints[0])
        return blueprint.count(known_spec(layer), units) if units > 0 else 0

    def _kinds_of(self, layer_name: str) -> Mapping[str, int]:
        """Smallest kernel of each blueprint that fits, ascending."""
        layer = self.layers[layer_name]
        if layer.spec is None or layer_name in self.left_out:
            return {}
        spec, kinds = self._sizes.get(layer_name, (None, {}))
        if spec != layer.spec:  # that of a width changes as it grows
            kinds = smallest_kernels(layer)
            self._sizes[layer_name] = (layer.spec, kinds)
        return kinds
