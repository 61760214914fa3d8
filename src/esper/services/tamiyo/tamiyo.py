"""Tamiyo: grows a model while the user trains it. Two calls in the user's own loop do everything.

``on_batch_end`` probes, trains isolated seeds in the shadow and raises alphas; ``on_epoch_end``
measures, moves grafts on, judges those that are due, and lets the policy ask for the next one.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, final
from uuid import uuid4

from torch import nn

from esper.contracts.config import Config
from esper.contracts.errors import ConfigError
from esper.contracts.events import Event, event_data, event_from
from esper.contracts.schema import require_schema
from esper.contracts.selection import Decision
from esper.execution.copies.mirrors import Mirrors
from esper.execution.passes.batches import OnCopies
from esper.execution.passes.isolation import LossFn
from esper.execution.side_effect_free import keeps_statistics
from esper.execution.surgery import name_layers
from esper.execution.training import optimizers
from esper.execution.training.trainers import Trainers
from esper.services.tamiyo.blueprint_integration import BlueprintIntegration
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.budget import with_budget
from esper.services.tamiyo.growth.governor import Governor
from esper.services.tamiyo.growth.graft import Baseline, Training
from esper.services.tamiyo.growth.grafts import ActiveGrafts
from esper.services.tamiyo.growth.grower import Grower
from esper.services.tamiyo.growth.holdout_watch import HoldoutWatch
from esper.services.tamiyo.growth.mover import Mover
from esper.services.tamiyo.growth.prober import Prober
from esper.services.tamiyo.growth.reload import Reloads
from esper.services.tamiyo.ownership import let_go, own, refuse_owned, refuse_replicas
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.plan import Plan, plan_of
from esper.services.tamiyo.policies import POLICIES
from esper.services.tamiyo.report import EpochReport, Verdict
from esper.services.tamiyo.run_log import RunLog
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.services.tamiyo.setup import (
    bindings_of,
    config_of,
    events_to_save,
    journal_of,
    observe,
    scope_of,
    strategy_of,
    try_out,
)
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal

SCHEMA = 1  # of the state

_CALIBRATION_BATCHES = 8


@final
class Tamiyo:
    """Decides where, when and which seed to grow, and sees each graft through.

    Args:
        model: A model wrapped by ``esper.wrap``.
        optimizer: Trains it, or a list of those that do; a kernel joins its layer's.
        loss_fn: Takes the model and a batch; gives one loss per example, shape (B,), or per token
            with their mask, both (B, T). Autocast, if the training has it, belongs into it.
        holdout: Any re-iterable of batches that are never trained on.
        config: Settings, a mapping of sections, or the path of a YAML file; defaults if not given.
        store: Where the history is kept: a URL as ``"sqlite:///history.db"``, or a store. What
            earlier runs of the same ``scope`` left there is learnt from. In memory if not given.
        scheduler: Learning-rate scheduler of ``optimizer``, or a list; told of new parameters.
        seed: Run seed: the same seed and data give the same event log.
        accuracy_fn: Per-example correctness, shape (B,); recorded if given.
        seed_optimizer: Makes the optimizer of an isolated seed; by default one like ``optimizer``.
        scope: Whose history this is; by default the model's class name.
        run: Name of the run in the store; by default a fresh one.
        plan: Print the plan of the run, as ``plan()`` returns it.

    Raises:
        ConfigError: if the model is not wrapped, lazy, on the meta device, sharded, trained by
            several processes, or grows under another Tamiyo; if the holdout can be iterated only
            once; if an optimizer or a setting is wrong.
        KernelError: if the model fails on a batch of the holdout; it is left as it was.
        StoreError: if the store cannot be opened.
    """

    def __init__(  # noqa: PLR0913 (the public contract; everything else is keyword-only)
        self,
        model: nn.Module,
        optimizer: Any,
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
        plan: bool = False,
    ) -> None:
        model = getattr(model, "_orig_mod", model)
        self.config = config_of(config)
        refuse_replicas()
        self.layers = name_layers(model)
        refuse_owned(self.layers.values())
        self.training = Training(
            model=model,
            trainers=Trainers(model, self.layers, optimizer, scheduler, seed_optimizer),
            loss_fn=OnCopies(loss_fn, "loss_fn"),
            holdout=holdout,
            accuracy_fn=accuracy_fn and OnCopies(accuracy_fn, "accuracy_fn"),
        )
        self.aside = Aside()
        self._left_out = try_out(self.training, self.layers)
        self.config = with_budget(self.config, model, self.layers, self._left_out)
        self._owns_store = not isinstance(store, MetricsStore | Journal)
        self._names_run = run is not None
        self.journal = journal_of(store)
        performance, growth = self.config.seed_selection.performance, self.config.growth
        self.tracker = PerformanceTracker(
            window_size=performance.window_size,
            decay_factor=performance.decay_factor,
            store=self.journal,
            scope=scope_of(model) if scope is None else scope,
            run=run or ("run" if store is None else uuid4().hex[:12]),
        )
        for binding in bindings_of(self.layers):
            self.tracker.bind(*binding)
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
            aside=self.aside,
        )
        self.prober = Prober(
            self.training,
            self.layers,
            growth=growth,
            aside=self.aside,
            observe=lambda batch: observe(self.training, self.layers, batch, self._left_out),
        )
        self._probe = self.prober.probe
        self.grower = Grower(
            self.policy,
            self.integration,
            self.grafts,
            tracker=self.tracker,
            log=self.log,
            layers=self.layers,
            left_out=self._left_out,
        )
        self.governor = Governor(
            model, self.training.trainers.optimizers, divergence_factor=growth.divergence_factor
        )
        self.mover = Mover(self.training, self.grafts, self.governor, self.log, self.aside)
        self.reloads = Reloads(self.grafts, self.governor)
        self._mirrors = Mirrors(model, self.training.trainers.take_joined)
        self._losses, self._epoch = list[float](), -1
        self._batches = self._batches_of_epoch = 0
        self._recent: deque[Any] = deque(maxlen=_CALIBRATION_BATCHES)
        self._keeps_statistics, self._finished = keeps_statistics(model), False
        self._watch = HoldoutWatch(holdout)
        own(self.layers.values(), self)
        if plan:
            self.plan().show()

    # --- what the user calls ----------------------------------------------------------------------

    def plan(self, *, batch: Any = None, batches: int | None = None) -> Plan:
        """What the run will do and an estimate of its cost, from a few passes on the side.

        Args:
            batch: A training batch to time; by default the first of the holdout.
            batches: Training batches of an epoch; by default as many as make the holdout a tenth.
        """
        return plan_of(self.training, self.grower, self.aside, batch=batch, batches=batches)

    def on_batch_end(self, batch: Any) -> None:
        """After ``optimizer.step()``: probe now and then, train isolated seeds, raise alphas.

        Args:
            batch: The batch that was just trained on, as ``loss_fn`` takes it.
        """
        if self._finished:
            return
        self.reloads.link(begun=True)
        self._batches, self._batches_of_epoch = self._batches + 1, self._batches_of_epoch + 1
        with self.aside("the watch over the holdout"):
            self._watch.on_batch(batch)
        if not self._keeps_statistics:
            self._recent.clear()
        self._recent.append(batch)
        if not self.grower.rests:
            self.prober.on_batch(self._batches, batch)
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
        now, decisions, verdicts = None, tuple[Decision, ...](), list[Verdict]()
        self.reloads.epoch = epoch
        self.reloads.link(begun=True)
        with self.aside("the end of an epoch") as attempt, self._mirrors.following():
            self.grafts.wake(epoch)
            attempt.reason = self.grower.over
            if not self.grower.rests:
                now = self._move_on(epoch, verdicts)
                decisions, attempt.reason = self._grow(now, epoch)
            self.mover.protect(now, epoch)
            self.grower.look_ahead(epoch)
        if decisions:
            with self.aside("the watch over averages of the parameters"):
                self._mirrors.watch()
        self._batches_of_epoch = 0
        self.reloads.epoch = epoch + 1
        self._watch.stop()
        self._recent.clear()  # what a resumed run does not have, must not matter
        report = EpochReport(
            epoch=epoch,
            holdout_loss=float("nan") if now is None else now.loss,
            holdout_accuracy=None if now is None else now.accuracy,
            used=self.used,
            budget=self.budget,
            steps=self.grafts.take_steps(),
            verdicts=tuple(verdicts),
            decisions=decisions,
            reason=attempt.why or attempt.reason,
            over=self.grower.over,
            measured=now is not None,
        )
        with self.aside("the record of an epoch"):
            self.log.epoch(report)
        return report

    def on_evaluation(self) -> EpochReport:
        """As ``on_epoch_end``, numbered by itself: for a loop in steps, at each evaluation."""
        return self.on_epoch_end(self._epoch + 1)

    def finish(self) -> list[Verdict]:
        """End the run: no choice stays open in the store, and another engine may take the model.

        Kernels under way are culled without an outcome, those that are being blended in too. From
        now on ``on_batch_end`` does nothing and ``on_epoch_end`` only measures. Again does nothing.

        Returns:
            The end of each graft that was under way.
        """
        self._finished, verdicts = True, list[Verdict]()
        with self.aside("the end of the run"), self._mirrors.following():
            verdicts = self.grafts.withdraw_all("the run ended", epoch=max(self._epoch, 0))
            self.governor.let_go()
            self.journal.flush()
        self.reloads.end()
        let_go(self.layers.values(), self)
        return verdicts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """``finish``, and ``close`` what would outlive the process."""
        self.finish()
        if self.journal.store.durable:
            self.close()

    @property
    def budget(self) -> int:
        """Parameters that growth may add in all."""
        return self.policy.budget

    @property
    def used(self) -> int:
        """Parameters of all kernels, absorbed or under way."""
        return self.grower.used

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

    def _move_on(self, epoch: int, verdicts: list[Verdict]) -> Baseline | None:
        """Measure, roll back what fell ill, and take every graft the step that is due."""
        now = self.mover.measure(epoch, verdicts)
        self._losses += [] if now is None else [now.loss]
        recent = list(self._recent) if self._keeps_statistics else ()
        verdicts += self.mover.move_on(now, epoch, self._batches_of_epoch, calibration=recent)
        return now

    def _grow(self, now: Baseline | None, epoch: int) -> tuple[tuple[Decision, ...], str]:
        batches = list(self._recent)
        if self._finished:
            return (), "the run is finished"
        if now is None:
            self.prober.forget()
            return (), "the held-out loss could not be measured"
        health = self.prober.health(epoch, self._losses, batches)
        with self.aside("the choice of a graft") as attempt:
            return self.grower.grow(health, self._losses, now, epoch, batches)
        return (), attempt.why

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
            "last_graft_epoch": self.grower.last_epoch,
            "prober": self.prober.state_dict(),
            "groups": self.training.trainers.group_names(),
            "grafts": self.grafts.state_dict(),
            "selector": self.selector.state_dict(),
            "policy": self.policy.state_dict(),
            "run": self.tracker.events.run,
            "history": self.tracker.position,
            "reads": list(self.tracker.events.reads),
            "events": [event_data(event) for event in events_to_save(self.journal, self.tracker)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where a checkpoint left it.

        Begin as for a fresh run: wrap, make the optimizer, the scheduler and this object. Then
        load, in this order, the states of the model, of this object, of the optimizer and of the
        scheduler: this one gives the optimizer the parameter groups of the grown kernels. The run
        goes on under its old name, unless this object was given another.

        Raises:
            ConfigError: if the state is of another schema or of kernels that the model does not
                have, or the optimizer was not built over the parameters that it had.
        """
        require_schema(state, "Tamiyo", SCHEMA)
        self.training.trainers.replay_groups(state["groups"], self.reloads.start_over(state))
        self._epoch = state["epoch"]
        self._losses = list(state["losses"])
        self._batches = state["batches"]
        self.grower.last_epoch = state["last_graft_epoch"]
        self.prober.load_state_dict(state.get("prober", {}))
        self.journal.append_all([event_from(data) for data in state["events"]])
        run = self.tracker.events.run if self._names_run else state["run"]
        self.tracker.rewind(
            state["history"],
            run=run,
            reads=state.get("reads", ()) if run == state["run"] else (),
            bindings=bindings_of(self.layers),
        )
        self.policy.load_state_dict(state["policy"])
        self.grafts.load_state_dict(state["grafts"])
        self.selector.load_state_dict(state["selector"])
        self.grower.look_ahead(self._epoch)
