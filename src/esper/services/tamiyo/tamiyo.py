"""Tamiyo: grows a model while the user trains it. Two calls in the user's own loop do everything.

``on_batch_end`` probes, trains isolated seeds in the shadow and raises alphas; ``on_epoch_end``
measures, moves grafts on, judges those that are due, and lets the policy ask for the next one.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

from torch import nn

from esper.contracts.config import Config
from esper.contracts.events import Event
from esper.contracts.schema import require_schema
from esper.contracts.selection import Decision
from esper.drawing.html_tables import seeds_table
from esper.drawing.run_log import draw_log
from esper.execution.copies.mirrors import Mirrors
from esper.execution.passes.batches import OnCopies
from esper.execution.passes.isolation import LossFn
from esper.execution.replicas.data_parallel import Reduction, unwrapped
from esper.execution.replicas.replicas import Replicas
from esper.execution.side_effect_free import keeps_statistics
from esper.execution.surgery import name_layers
from esper.execution.training import optimizers
from esper.execution.training.trainers import Trainers
from esper.services.tamiyo.assignment import chooser_of
from esper.services.tamiyo.blueprint_integration import BlueprintIntegration
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.budget import with_budget
from esper.services.tamiyo.growth.governor import Governor
from esper.services.tamiyo.growth.graft import Baseline, Training, alphas_of
from esper.services.tamiyo.growth.grafts import ActiveGrafts
from esper.services.tamiyo.growth.grower import Grower
from esper.services.tamiyo.growth.holdout import HoldoutWatch
from esper.services.tamiyo.growth.mover import Mover
from esper.services.tamiyo.growth.ownership import let_go, own, refuse_owned
from esper.services.tamiyo.growth.prober import Prober
from esper.services.tamiyo.growth.progress import Progress
from esper.services.tamiyo.growth.reload import Reloads
from esper.services.tamiyo.plan import Plan, plan_of
from esper.services.tamiyo.policies import POLICIES
from esper.services.tamiyo.report import EpochReport, Verdict
from esper.services.tamiyo.run_log import RunLog
from esper.services.tamiyo.setup import (
    bindings_of,
    config_of,
    facts_of,
    journal_of,
    observe,
    run_name,
    scope_of,
    selector_of,
    tracker_of,
    trackers_of,
    try_out_together,
)
from esper.services.tamiyo.tracking import Tracker
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal

SCHEMA = 2  # of the state


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
        scope: Whose history this is; by default the model's class name. Runs of one scope learn
            from each other, so a comparison of settings wants a scope for each run.
        run: Name of the run in the store; by default a fresh one.
        trackers: Get the scalars of every epoch, as those of ``esper.integrations.trackers``.
        plan: Print the plan of the run, as ``plan()`` returns it.

    Raises:
        ConfigError: if the model is not wrapped, lazy, on the meta device, sharded,
            or grows under another Tamiyo; if the holdout can be iterated only
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
        trackers: Sequence[Tracker] = (),
        plan: bool = False,
    ) -> None:
        model = unwrapped(getattr(model, "_orig_mod", model))
        self.config = config_of(config)
        self.replicas = Replicas()
        self.layers = name_layers(model)
        refuse_owned(self.layers.values())
        trainers = Trainers(model, self.layers, optimizer, scheduler, seed_optimizer)
        self.training = Training(
            model=model,
            trainers=trainers,
            mirrors=Mirrors(model, trainers.take_joined),
            loss_fn=OnCopies(loss_fn, "loss_fn"),
            holdout=holdout,
            accuracy_fn=accuracy_fn and OnCopies(accuracy_fn, "accuracy_fn"),
            replicas=self.replicas,
        )
        self.aside = Aside()
        self._left_out = try_out_together(self.training, self.layers)
        self.config = with_budget(self.config, model, self.layers, self._left_out)
        self._owns_store = not isinstance(store, MetricsStore | Journal)
        self._names_run = run is not None
        self.journal = journal_of(store, self.replicas)
        growth = self.config.growth
        self.tracker = tracker_of(
            self.config,
            self.journal,
            self.layers,
            chooser=(chooser := chooser_of(self.config)),
            scope=scope_of(model) if scope is None else scope,
            run=run_name(run, store, self.replicas),
        )
        self.log = RunLog(
            self.tracker.events,
            trackers_of(trackers, self.replicas, self.aside),
            facts_of(model, self.layers, self.config, optimizers=optimizer, seed=seed),
        )
        self.selector = selector_of(self.config, self.tracker, chooser, seed)
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
        self.progress = Progress(keeps_statistics(model), self.grower.reads_promises)
        self.mover = Mover(
            self.training, self.progress, self.grafts, self.governor, self.log, self.aside
        )
        self.reloads = Reloads(self.grafts, self.governor)
        self._finished, self._watch = False, HoldoutWatch(holdout)
        self._reduction = Reduction(model, self.layers.values())
        own(self.layers.values(), self)
        if plan:
            self.plan().show()

    def plan(self, *, batch: Any = None, batches: int | None = None) -> Plan:
        """What the run will do and an estimate of its cost, from a few passes on the side.

        ``batch`` is a training batch to time, by default the first of the holdout; ``batches`` are
        those of an epoch, by default as many as make the holdout a tenth.
        """
        return plan_of(self.training, self.grower, self.aside, batch=batch, batches=batches)

    def on_batch_end(self, batch: Any) -> EpochReport | None:
        """After ``optimizer.step()``: probe now and then, train isolated seeds, raise alphas.

        ``batch`` was just trained on, and is as ``loss_fn`` takes it. Returns the report of an
        epoch of ``growth.every`` batches, if one ended.
        """
        if self._finished:
            return None
        self.reloads.link(begun=True)
        with self.aside("the watch over the holdout"):
            self._watch.on_batch(batch)
        self.progress.on_batch(batch)
        if not self.grower.rests:
            self.prober.on_batch(self.progress.batches, batch)
        self.grafts.on_batch(batch)
        due = self.progress.batches_of_epoch == self.config.growth.every
        return self.on_evaluation() if due else None

    def on_epoch_end(self, epoch: int) -> EpochReport:
        """Measure, move grafts on, judge what is due, and perhaps begin the next graft.

        Args:
            epoch: Number of the epoch that ended; larger than at the last call.

        Returns:
            What was done and why; ``print`` it.

        Raises:
            ConfigError: if the epoch is no whole number, or not larger than the last one.
        """
        epoch = self.progress.on_epoch_end(epoch)
        self.replicas.check_equal(self.training.model)
        now, decisions, verdicts = None, tuple[Decision, ...](), list[Verdict]()
        self.reloads.epoch = epoch
        self.reloads.link(begun=True)
        with self.aside("the record of the run"):
            self.log.begin()
        with self.aside("the end of an epoch") as attempt, self.training.mirrors.following():
            self.grafts.wake(epoch)
            attempt.reason = self.grower.over
            if not self.grower.rests:
                now = self.mover.move_on(epoch, verdicts, finished=self._finished)
                decisions, attempt.reason = self._grow(now, epoch)
            self.mover.protect(now, epoch)
            self.grower.look_ahead(epoch)
        self._reduction.fit()
        self.progress.begin_epoch()
        self.reloads.epoch = epoch + 1
        self._watch.stop()
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
            self.log.epoch(report, alphas_of(self.grafts.grafts))
        return report

    def on_evaluation(self) -> EpochReport:
        """As ``on_epoch_end``, numbered by itself: for a loop in steps, at each evaluation."""
        return self.on_epoch_end(self.progress.epoch + 1)

    def finish(self) -> list[Verdict]:
        """End the run: no choice stays open in the store, and another engine may take the model.

        Kernels under way, those being blended in too, are culled without an outcome, and returned;
        with ``growth.judge`` other than each, those that train with the host are judged instead.
        From now on ``on_batch_end`` does nothing and ``on_epoch_end`` only measures.
        """
        self._finished, verdicts = True, list[Verdict]()
        with self.aside("the end of the run"), self.training.mirrors.following():
            verdicts = self.mover.end(epoch := max(self.progress.epoch, 0))
            verdicts += self.grafts.withdraw_all("the run ended", epoch=epoch)
            self.governor.let_go()
            self.log.end("finished", epoch=self.progress.epoch)
            self.journal.flush()
        self.reloads.end()
        let_go(self.layers.values(), self)
        return verdicts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """``finish``, and ``close`` what would outlive the process."""
        self.finish()
        self.close() if self.journal.store.durable else self.log.trackers.close()

    @property
    def budget(self) -> int:
        """Parameters that growth may add in all."""
        return self.policy.budget

    @property
    def used(self) -> int:
        """Parameters of all kernels, absorbed or under way."""
        return self.grower.used

    def _repr_html_(self) -> str:
        grown = f"{self.used:,} of {self.budget:,} parameters grown"
        return seeds_table(
            f"Tamiyo, epoch {self.progress.epoch}: {grown}",
            map(self.tracker.layer, self.layers),
            "state",
            lambda one: self.layers[one.layer_name].seed_states[one.seed_idx],
        )

    def events(self) -> list[Event]:
        """The event log of this run so far, in order."""
        return self.log.events()

    def picture(self, path: str | Path) -> None:
        """Draw the run so far into a file, .png, .svg or .pdf: losses, states of seeds, rewards.

        Raises:
            ConfigError: if matplotlib or the folder is missing, or the suffix is another.
            StoreError: if the log cannot be read, as after `close`.
        """
        if self.replicas.leads:
            draw_log(self.events(), Path(path))

    def close(self) -> None:
        """End the run for its history: deliver what waits, and close a store not handed in open.

        Choices under way are withdrawn, and teach nothing; the model keeps their kernels, and a
        checkpoint can be taken up again. From now on the engine does as after `finish`. Raises a
        `StoreError` if events could not be stored.
        """
        if not self._finished:
            self._finished = True
            with self.aside("the end of the run"):
                for graft in self.grafts.grafts:
                    self.tracker.withdraw(graft.decision)
                self.log.end("closed", epoch=self.progress.epoch)
        self.log.trackers.close()
        self.journal.close() if self._owns_store else self.journal.flush()

    def _grow(self, now: Baseline | None, epoch: int) -> tuple[tuple[Decision, ...], str]:
        if self._finished:
            return (), "the run is finished"
        if now is None:
            self.prober.forget()
            return (), "the held-out loss could not be measured"
        losses, batches = self.progress.losses, list(self.progress.recent)
        health = self.prober.health(epoch, losses, batches)
        with self.aside("the choice of a graft") as attempt:
            return self.grower.grow(health, losses, now, epoch, batches)
        return (), attempt.why

    def state_dict(self) -> dict[str, Any]:
        """State of the run, beside the states of model, optimizer and scheduler.

        After ``on_batch_end`` or, better with batch norm, ``on_epoch_end``. It is plain data.
        """
        return {
            "schema": SCHEMA,
            **self.progress.state_dict(),
            "last_graft_epoch": self.grower.last_epoch,
            "prober": self.prober.state_dict(() if self.grower.rests else self.progress.recent),
            "groups": self.training.trainers.group_names(),
            "grafts": self.grafts.state_dict(),
            "selector": self.selector.state_dict(),
            "policy": self.policy.state_dict(),
            "log": self.tracker.events.state_dict(),
            "begun": self.log.begun,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where a checkpoint left it.

        Begin as for a fresh run: wrap, make the optimizer, the scheduler and this object. Then load
        the states of the model, of this object, which gives the optimizer the groups of kernels, of
        the optimizer and of the scheduler. The run keeps its name, unless this object has another.

        Raises:
            ConfigError: if the state is of another schema or of kernels that the model does not
                have, or the optimizer was not built over the parameters that it had.
        """
        require_schema(state, "Tamiyo", SCHEMA)
        self.training.trainers.replay_groups(state["groups"], self.reloads.start_over(state))
        self.progress.load_state_dict(state)
        self.grower.last_epoch = state["last_graft_epoch"]
        self.prober.load_state_dict(state.get("prober", {}))
        told = self.tracker, bindings_of(self.layers), self.replicas
        self.log.take_up(state, *told, keep_name=self._names_run)
        self.policy.load_state_dict(state["policy"])
        self.grafts.load_state_dict(state["grafts"])
        self.selector.load_state_dict(state["selector"])
        self.grower.look_ahead(self.progress.epoch)
        self._reduction.fit()
