"""Tamiyo: grows a model while the user trains it. Two calls in the user's own loop do everything.

``on_batch_end`` probes, trains isolated seeds in the shadow and raises alphas; ``on_epoch_end``
measures, moves grafts on, judges those that are due, and lets the policy ask for the next one.
"""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, final
from uuid import uuid4

from torch import nn
from torch.optim import Optimizer

from esper.contracts.config import Config
from esper.contracts.errors import ConfigError, KernelError, NoViableSeedError
from esper.contracts.events import Event, event_data, event_from
from esper.contracts.health import GraftRequest, HealthSignal
from esper.contracts.schema import require_schema
from esper.contracts.selection import Decision
from esper.execution import optimizers
from esper.execution.counterfactual import evaluate
from esper.execution.isolation import LossFn
from esper.execution.probes import Readings, probe
from esper.execution.side_effect_free import keeps_statistics
from esper.execution.surgery import kasmina_layers
from esper.records.fold import KINDS
from esper.services.tamiyo.blueprint_integration import BlueprintIntegration, smallest_kernels
from esper.services.tamiyo.governor import Governor
from esper.services.tamiyo.graft import Baseline, Training
from esper.services.tamiyo.grafts import ActiveGrafts
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.policies import POLICIES, LayerGrowth, Situation
from esper.services.tamiyo.policies.heuristic import loss_trend
from esper.services.tamiyo.report import EpochReport, Verdict
from esper.services.tamiyo.run_log import RunLog
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.services.tamiyo.setup import (
    bind_blueprints,
    config_of,
    journal_of,
    strategy_of,
    try_out,
)
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of the state."""

_CALIBRATION_BATCHES = 8


@final
class Tamiyo:
    """Decides where, when and which seed to grow, and sees each graft through.

    Args:
        model: A model wrapped by ``esper.wrap``.
        optimizer: Trains it; kernels join it when they are blended in.
        loss_fn: Takes the model and a batch; gives per-example losses, shape (B,). If the training
            runs under autocast, put the autocast into this function.
        holdout: Any re-iterable of batches that are never trained on.
        config: Settings, a mapping of sections, or the path of a YAML file; defaults if not given.
        store: Where the history is kept: a URL as ``"sqlite:///history.db"``, or a store. What
            earlier runs of the same ``scope`` left there is learnt from. In memory if not given.
        scheduler: Learning-rate scheduler of ``optimizer``; it is told of new parameters.
        seed: Run seed: the same seed and data give the same event log.
        accuracy_fn: Per-example correctness, shape (B,); recorded if given.
        seed_optimizer: Makes the optimizer of an isolated seed; by default one like ``optimizer``.
        scope: Whose history this is; by default the model's class name.
        run: Name of the run in the store; by default a fresh one.

    Raises:
        ConfigError: if the model is not wrapped, the holdout can be iterated only once, or a
            setting is wrong.
        KernelError: if the model fails on a batch of the holdout; it is left as it was.
        StoreError: if the store cannot be opened.
    """

    def __init__(  # noqa: PLR0913 (the public contract; everything else is keyword-only)
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        loss_fn: LossFn,
        holdout: Iterable[Any],
        config: Config | Mapping[str, Any] | str | Path | None = None,
        store: str | MetricsStore | Journal | None = None,
        scheduler: Any = None,
        seed: int = 0,
        accuracy_fn: LossFn | None = None,
        seed_optimizer: optimizers.SeedOptimizer | None = None,
        scope: str | None = None,
        run: str | None = None,
    ) -> None:
        model = getattr(model, "_orig_mod", model)
        self.config = config_of(config)
        self.layers = kasmina_layers(model)
        self.training = Training(
            model=model,
            optimizer=optimizer,
            loss_fn=loss_fn,
            holdout=holdout,
            scheduler=scheduler,
            seed_optimizer=seed_optimizer,
            accuracy_fn=accuracy_fn,
        )
        try_out(self.training, self.layers)
        self._owns_store = not isinstance(store, MetricsStore | Journal)
        self._names_run = run is not None
        self.journal = journal_of(store)
        performance, growth = self.config.seed_selection.performance, self.config.growth
        self.tracker = PerformanceTracker(
            window_size=performance.window_size,
            decay_factor=performance.decay_factor,
            store=self.journal,
            scope=type(model).__name__ if scope is None else scope,
            run=run or ("run" if store is None else uuid4().hex[:12]),
        )
        bind_blueprints(self.tracker, self.layers)
        self.log = RunLog(self.tracker.events)
        self.selector = SeedSelector(
            strategy_of(self.config),
            tracker=self.tracker,
            seed=seed,
            constraints=self.config.seed_selection.constraints,
        )
        self.policy = POLICIES.create(self.config.policy, growth=growth, seed=seed)
        self.integration = BlueprintIntegration(self.selector, seed=seed)
        self.grafts = ActiveGrafts(
            self.training,
            self.layers,
            config=self.config,
            tracker=self.tracker,
            selector=self.selector,
            log=self.log,
        )
        self.governor = Governor(model, optimizer, divergence_factor=growth.divergence_factor)
        self._sizes = {name: smallest_kernels(layer) for name, layer in self.layers.items()}
        self._losses: list[float] = []
        self._last_graft_epoch: int | None = None
        self._epoch = -1
        self._batches = 0
        self._batches_of_epoch = 0
        self._readings = Readings()
        self._recent: deque[Any] = deque(maxlen=_CALIBRATION_BATCHES)
        self._keeps_statistics = keeps_statistics(model)

    # --- what the user calls ----------------------------------------------------------------------

    def on_batch_end(self, batch: Any) -> None:
        """After ``optimizer.step()``: probe now and then, train isolated seeds, raise alphas.

        Args:
            batch: The batch that was just trained on, as ``loss_fn`` takes it.
        """
        self._batches += 1
        self._batches_of_epoch += 1
        if not self._keeps_statistics:
            self._recent.clear()
        self._recent.append(batch)
        if self._batches % self.config.growth.probe_every == 0:
            self._probe(batch)
        self.grafts.on_batch(batch)

    def on_epoch_end(self, epoch: int) -> EpochReport:
        """Measure, move grafts on, judge what is due, and perhaps begin the next graft.

        Args:
            epoch: Number of the epoch that ended; larger than at the last call.

        Returns:
            What was done and why; ``print`` it.

        Raises:
            ConfigError: if the epoch is not larger than the last one.
        """
        if epoch <= self._epoch:
            raise ConfigError(f"epoch {epoch} ended before: the last one was {self._epoch}")
        self._epoch = epoch
        self.grafts.wake(epoch)
        now = self._measure()
        verdicts = self._govern(now, epoch)
        if verdicts:
            now = self._measure()
        self._losses.append(now.loss)
        verdicts += self.grafts.move_on(
            now,
            epoch=epoch,
            batches_per_epoch=self._batches_of_epoch,
            calibration=list(self._recent) if self._keeps_statistics else (),
        )
        if self.grafts.blending and isfinite(now.loss):
            self.governor.keep(now.loss, epoch)
        else:
            self.governor.let_go()
        decision, reason = self._grow(now, epoch)
        self._batches_of_epoch = 0
        self._recent.clear()  # what a resumed run does not have, must not matter
        report = EpochReport(
            epoch=epoch,
            holdout_loss=now.loss,
            holdout_accuracy=now.accuracy,
            used=self.used,
            budget=self.config.growth.budget,
            steps=self.grafts.take_steps(),
            verdicts=tuple(verdicts),
            decision=decision,
            reason=reason,
        )
        self.log.epoch(report)
        return report

    @property
    def used(self) -> int:
        """Parameters of all kernels, absorbed or under way."""
        return sum(layer.grown_parameters for layer in self.layers.values())

    def events(self) -> list[Event]:
        """The event log of this run so far, in order."""
        return self.log.events()

    def close(self) -> None:
        """Deliver what waits for the store, and close it unless it was handed in open.

        Raises:
            StoreError: if events could not be stored.
        """
        if self._owns_store:
            self.journal.close()
        else:
            self.journal.flush()

    # --- one epoch, in order ----------------------------------------------------------------------

    def _measure(self) -> Baseline:
        training = self.training
        loss = evaluate(training.model, training.loss_fn, training.holdout)
        if training.accuracy_fn is None:
            return Baseline(loss=loss)
        return Baseline(
            loss=loss, accuracy=evaluate(training.model, training.accuracy_fn, training.holdout)
        )

    def _govern(self, now: Baseline, epoch: int) -> list[Verdict]:
        """Roll an ill host back; the kernels that were being blended in are at fault."""
        why = self.governor.objection(now.loss)
        if not why:
            return []
        logger.warning("epoch %d: %s; rolled back to epoch %d", epoch, why, self.governor.epoch)
        self.log.rollback(epoch=epoch, to_epoch=self.governor.epoch, why=why)
        self.governor.restore()
        return self.grafts.abandon_blending(f"{why}; the host was rolled back", epoch=epoch)

    def _grow(self, now: Baseline, epoch: int) -> tuple[Decision | None, str]:
        signals = {signal.layer_name: signal for signal in self._signals(now, epoch)}
        self.log.health(list(signals.values()))
        self.tracker.refresh()
        refused: list[str] = []
        while True:
            situation = self._situation(list(signals.values()), epoch)
            request, reason = self.policy.ask(situation)
            if request is None:
                return None, "; ".join([*refused, reason])
            self.log.request(request)
            # A layer that refuses must not keep the others from growing.
            decision, reason = self._begin(request, signals.pop(request.site.name), now)
            if decision is not None:
                return decision, reason
            refused.append(reason)

    def _begin(
        self, request: GraftRequest, health: HealthSignal, now: Baseline
    ) -> tuple[Decision | None, str]:
        layer = self.layers[request.site.name]
        try:
            decision, kernel = self.integration.graft_now(layer, request, health=health)
        except (NoViableSeedError, KernelError) as error:
            logger.warning("no graft at epoch %d: %s", request.epoch, error)
            self.log.refusal(request, error)
            return None, str(error)
        self.grafts.begin(decision, kernel, now)
        if kernel.cost is not None and kernel.cost.latency_ms is not None:
            self.tracker.record_timing(
                decision.layer_name,
                decision.seed_idx,
                latency_ms=kernel.cost.latency_ms,
                decision=decision,
                stored=False,
            )
        self._last_graft_epoch = request.epoch
        return decision, request.reason

    def _signals(self, now: Baseline, epoch: int) -> list[HealthSignal]:
        if not self._readings and self._recent:
            self._probe(self._recent[-1])
        trend = loss_trend(self._losses, self.config.growth.plateau_window)
        means = self._readings.take()
        return [
            HealthSignal(
                layer_name=name,
                epoch=epoch,
                holdout_loss=now.loss,
                loss_trend=trend,
                **means.get(name, {}),
            )
            for name in self.layers
        ]

    def _situation(self, signals: list[HealthSignal], epoch: int) -> Situation:
        return Situation(
            epoch=epoch,
            losses=self._losses,
            signals=signals,
            records={name: self._record_of(name) for name in self.layers},
            used=self.used,
            last_graft_epoch=self._last_graft_epoch,
        )

    def _record_of(self, layer_name: str) -> LayerGrowth:
        metrics = self.tracker.get_layer_metrics(layer_name).values()
        sizes = self._sizes[layer_name]
        return LayerGrowth(
            kept=sum(m.successful_grafts for m in metrics),
            judged=sum(m.total_outcomes for m in metrics),
            active=self.grafts.count(layer_name),
            smallest_kernel=sizes[0] if sizes else None,
            roomy_kernel=sizes[-1] if sizes else 0,
        )

    def _probe(self, batch: Any) -> None:
        training = self.training
        self._readings.add(
            probe(training.model, self.layers, loss_fn=training.loss_fn, batch=batch)
        )

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State of the run, beside the states of model, optimizer and scheduler.

        Take it between two epochs. Tensors, plain values, lists and dictionaries only.
        """
        return {
            "schema": SCHEMA,
            "epoch": self._epoch,
            "losses": list(self._losses),
            "batches": self._batches,
            "last_graft_epoch": self._last_graft_epoch,
            "groups": optimizers.group_names(self.training.optimizer, self.training.model),
            "grafts": self.grafts.state_dict(),
            "selector": self.selector.state_dict(),
            "policy": self.policy.state_dict(),
            "run": self.tracker.events.run,
            "history": self.tracker.position,
            "events": [event_data(event) for event in self._events_of_this_process()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where a checkpoint left it.

        Begin as for a fresh run: wrap, make the optimizer, the scheduler and this object. Then
        load, in this order, the states of the model, of this object, of the optimizer and of the
        scheduler: this one gives the optimizer the parameter groups of the grown kernels. The run
        goes on under its old name, unless this object was given another.

        Raises:
            ConfigError: if the state is of another schema, or the optimizer was not built over the
                parameters that it had.
        """
        require_schema(state, "Tamiyo", SCHEMA)
        training = self.training
        optimizers.replay_groups(
            training.optimizer, training.model, state["groups"], training.scheduler
        )
        self._epoch = state["epoch"]
        self._losses = list(state["losses"])
        self._batches = state["batches"]
        self._last_graft_epoch = state["last_graft_epoch"]
        self.journal.append_all([event_from(data) for data in state["events"]])
        run = self.tracker.events.run if self._names_run else state["run"]
        self.tracker.rewind(state["history"], run=run)
        bind_blueprints(self.tracker, self.layers)
        self.policy.load_state_dict(state["policy"])
        self.grafts.load_state_dict(state["grafts"])
        self.selector.load_state_dict(state["selector"])

    def _events_of_this_process(self) -> list[Event]:
        """The events of the history that the store would not give to another process."""
        if self.journal.store.durable:
            return self.journal.undelivered()
        events = self.tracker.events
        found = self.journal.read(scope=events.scope, run=events.run, kinds=KINDS)
        return [event for _, event in found]
