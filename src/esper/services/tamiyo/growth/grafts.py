"""The grafts under way: moved on epoch by epoch, judged when they are due, kept or culled.

Every change of state is noted in the run's log, every outcome goes to the tracker with the decision
that it belongs to, and every slot that becomes free is handed back to the selector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from operator import itemgetter
from typing import Any, final

from esper.contracts.config import Config
from esper.contracts.seeds import KernelCost, SeedState
from esper.contracts.selection import Decision, decision_data, decision_from
from esper.execution import lifecycle
from esper.execution.kernel import Kernel, count_parameters
from esper.execution.seeded import Seeded
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.auditions import (
    best_of,
    cohorts_of,
    contrasts_of,
    lost_to,
    measured,
    trained,
)
from esper.services.tamiyo.growth.graft import Baseline, Fault, Graft, Training
from esper.services.tamiyo.growth.ruling import UNJUDGED, Judge, Ruling, passes, rule
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.report import FREE_AGAIN, Step, Verdict
from esper.services.tamiyo.run_log import RunLog, finite
from esper.services.tamiyo.seed_selector import SeedSelector

_WORK = {
    SeedState.BLENDING: "blending a kernel in",
    SeedState.HOLDING: "the counterfactual of a kernel",
}
"""Subject of the sentence that says that a step failed."""


@final
class ActiveGrafts:
    """Sees each graft through, from its kernel to its verdict."""

    def __init__(
        self,
        training: Training,
        layers: Mapping[str, Seeded],
        *,
        config: Config,
        tracker: PerformanceTracker,
        selector: SeedSelector,
        log: RunLog,
        aside: Aside,
    ) -> None:
        self.training = training
        self.layers = layers
        self.config = config
        self.tracker = tracker
        self.selector = selector
        self.log = log
        self.aside = aside
        self.grafts: list[Graft] = []
        self.ended: dict[str, tuple[int, int]] = {}
        """By layer, the grafts of this run that came to a verdict, and those of them kept."""
        self.judge = Judge(training, config.growth, aside)
        self._steps: list[Step] = []
        self._batches = 1

    def count(self, layer_name: str) -> int:
        """Grafts under way in one layer; an audition is one."""
        here = [graft.decision for graft in self.grafts if graft.layer.name == layer_name]
        return len({one.audition or one.decision_id for one in here})

    def count_end(self, layer_name: str, *, kept: bool) -> None:
        """Count a graft of this run that came to a verdict, or whose kernel failed."""
        judged, stayed = self.ended.get(layer_name, (0, 0))
        self.ended[layer_name] = judged + 1, stayed + kept

    def take_steps(self) -> tuple[Step, ...]:
        """Changes of state since the last call, in order."""
        steps, self._steps = tuple(self._steps), []
        return steps

    def on_batch(self, batch: Any) -> None:
        """Train what is isolated, raise the alpha of what is blending."""
        for graft in self.grafts:
            if graft.fault is not None:
                continue
            with self.aside("the training of a kernel") as attempt:
                graft.on_batch(batch)
            if attempt.failed:
                graft.fault = Fault(why=attempt.why, of_kernel=True)
                with self.aside("the trial of a kernel"):
                    graft.fault = graft.failed(attempt.why)

    def wake(self, epoch: int) -> None:
        """Let seeds be dormant again whose cooldown is over."""
        cooldown = self.config.seed_selection.constraints.min_dormant_epochs
        rested = [
            (freed, name, seed_idx)
            for name, layer in self.layers.items()
            for seed_idx, freed in self.selector.freed(name).items()
            if layer.seed_states[seed_idx] in lifecycle.RESTING and epoch - freed >= cooldown
        ]
        for _, name, seed_idx in sorted(rested, key=itemgetter(0)):
            change = (self.layers[name].seed_states[seed_idx], SeedState.DORMANT)
            self.layers[name].advance(seed_idx, SeedState.DORMANT)
            self._note(name, seed_idx, change, "its cooldown is over", epoch=epoch)

    def begin(
        self,
        decision: Decision,
        kernel: Kernel,
        baseline: Baseline,
        batches: Sequence[Any] = (),
    ) -> str:
        """Take a loaded kernel on and start its training in isolation.

        Args:
            decision: Why it is there.
            kernel: It has not trained yet.
            baseline: Held-out values now.
            batches: Recent training batches.

        Returns:
            Why it cannot be trained, its decision being withdrawn; empty if it can.
        """
        name, seed_idx, epoch = decision.layer_name, decision.seed_idx, decision.epoch
        with self.aside("the optimizer of a kernel") as attempt:
            graft = self._graft(decision, kernel, baseline)
        if not attempt.failed:
            with self.aside("the choice of a kernel's first values") as attempt:
                graft.choose_rows(batches)
        if attempt.failed:
            change = (self.layers[name].seed_states[seed_idx], SeedState.CULLED)
            self.layers[name].unload(seed_idx)
            self._note(name, seed_idx, change, attempt.why, epoch=epoch)
            self.tracker.withdraw(decision)
            self.selector.free(name, seed_idx, epoch)
            return attempt.why
        why = f"{kernel.blueprint} of {graft.parameters} parameters: {decision.reason.reason}"
        change = (SeedState.DORMANT, SeedState.GERMINATED)
        self._note(name, seed_idx, change, why, epoch=epoch, graft=graft)
        self.grafts.append(graft)
        isolated = self.config.growth.train_epochs > 0 or bool(decision.audition)
        why = "it trains in the shadow of the host" if isolated else "it trains with the host"
        self._step(graft, SeedState.TRAINING, why, epoch)
        if not isolated:
            self._blend(graft, epoch)
        return ""

    def move_on(
        self,
        now: Baseline | None,
        *,
        epoch: int,
        batches_per_epoch: int,
        calibration: Sequence[Any],
    ) -> list[Verdict]:
        """Take every graft the step that is due at the end of this epoch.

        Args:
            now: Held-out values at this time; ``None`` if they could not be measured, and then
                none is blended in or judged.
            epoch: The epoch that ended.
            batches_per_epoch: Batches that it had; an alpha ramp is as long.
            calibration: Recent training batches, for batch-norm statistics.

        Returns:
            Verdicts on those that ended.
        """
        self._batches = max(1, batches_per_epoch)
        if now is not None:
            self._end_auditions(epoch, calibration)
        verdicts, growth = [], self.config.growth
        for graft in list(self.grafts):
            due, verdict = graft.due(epoch, growth, measured=now is not None), None
            with self.aside(_WORK.get(due or SeedState.TRAINING, "the step of a graft")) as attempt:
                if due is not None:
                    graft.fault = graft.ailment
                if graft.fault is not None:
                    verdict = self._fail(graft, graft.fault, epoch)
                elif due is SeedState.BLENDING and not graft.auditions:
                    self._blend(graft, epoch)
                elif due is SeedState.CULLED:
                    verdict = self._fail(graft, graft.left_waiting(), epoch)
                elif due is SeedState.HOLDING and now is not None:
                    self._step(graft, due, "fully blended; it is judged", epoch)
                    verdict = self._judge(graft, now, calibration, epoch)
            if attempt.failed and graft.state not in lifecycle.RESTING:
                verdict = self._fail(graft, Fault.of_the_loop(attempt.why), epoch)
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts

    def _end_auditions(self, epoch: int, calibration: Sequence[Any]) -> None:
        """Blend in the best of each cohort that has trained, and dismiss the others."""
        for cohort in cohorts_of(self.grafts):
            able = trained(cohort, epoch, self.config.growth)
            with self.aside("the end of an audition") as attempt:
                effects = measured(able, calibration)
                for graft, contrast in contrasts_of(effects):
                    passed = passes(graft, effects[graft], self.config)
                    facts = {"passed": passed} if graft.placebo else {}
                    self.tracker.record_audition(graft.decision, contrast, **facts)
            if attempt.failed or not effects:  # measured again at the next epoch, or culled
                continue
            best = best_of(effects, self.config.reward)
            for graft in effects:
                if graft is not best:
                    self._dismiss(graft, lost_to(best, effects, graft), epoch)
            self._blend(best, epoch)

    def _dismiss(self, graft: Graft, why: str, epoch: int) -> None:
        """End a graft that lost an audition: no outcome, and no cooldown."""
        decision = graft.decision
        self._step(graft, SeedState.CULLED, why, epoch)
        self.grafts.remove(graft)
        with self.aside("the record of a withdrawal"):
            self.tracker.withdraw(decision)
        self.selector.free(decision.layer_name, decision.seed_idx, None)
        self._step(graft, SeedState.DORMANT, FREE_AGAIN, epoch)

    def _blend(self, graft: Graft, epoch: int) -> None:
        growth = self.config.growth
        batches = round(growth.ramp * growth.blend_epochs * self._batches)
        why = f"alpha goes from 0 to 1 in {batches} batches" if batches else "alpha is 1 at once"
        self._step(graft, SeedState.BLENDING, why, epoch)
        self.training.replicas.equalise(graft.kernel.module)
        graft.blend(epoch, ramp_batches=batches)

    @property
    def blending(self) -> bool:
        """True while a kernel is being blended in."""
        return any(graft.state is SeedState.BLENDING for graft in self.grafts)

    def abandon_blending(self, why: str, *, epoch: int) -> list[Verdict]:
        """Cull what is being blended in, as a failure."""
        blending = [graft for graft in self.grafts if graft.state is SeedState.BLENDING]
        fault = Fault(why=why, of_kernel=True)
        return [self._fail(graft, fault, epoch) for graft in blending]

    def withdraw_all(self, why: str, *, epoch: int) -> list[Verdict]:
        """End every graft without an outcome; its kernel is culled, its decision withdrawn."""
        fault = Fault(why=why, of_kernel=False)
        return [self._fail(graft, fault, epoch) for graft in list(self.grafts)]

    def end_lost(self, why: str, *, epoch: int) -> list[Verdict]:
        """End the grafts whose kernel is no longer in its seed; the others go on from its state."""
        fault = Fault.of_the_loop(why)
        verdicts = [self._fail(graft, fault, epoch) for graft in list(self.grafts) if graft.lost]
        for graft in self.grafts:
            graft.resume(epoch)
        return verdicts

    def _judge(
        self, graft: Graft, now: Baseline, calibration: Sequence[Any], epoch: int
    ) -> Verdict:
        effect = self.judge.effect(graft, calibration)
        if effect is None:
            self.tracker.withdraw(graft.decision)
            self.count_end(graft.decision.layer_name, kept=True)
            return self._end(graft, UNJUDGED, epoch=epoch)
        if not (isfinite(effect.gain) and isfinite(effect.stderr) and isfinite(now.loss)):
            fault = Fault(why="its counterfactual is not finite", of_kernel=True)
            return self._fail(graft, fault, epoch)
        decision, shrunk = graft.decision, self.judge.shrunk.get(graft)
        ruling = rule(graft, effect, self.config, shrunk)
        reward = self.tracker.update_metrics_now(
            decision.layer_name,
            decision.seed_idx,
            graft.outcome(now, effect, self.config.reward),
            decision=decision,
            kernel_id=graft.kernel.kernel_id,
        )
        self.count_end(decision.layer_name, kept=ruling.kept)
        return self._end(graft, ruling, epoch=epoch, reward=reward, stderr=effect.stderr)

    def _fail(self, graft: Graft, fault: Fault, epoch: int) -> Verdict:
        """End a graft without a measurement; only the kernel's own fault is an outcome."""
        with self.aside("the record of an outcome"):
            if fault.of_kernel:
                self.count_end(graft.decision.layer_name, kept=False)
                self.selector.fail(graft.decision, fault.why)
            else:
                self.tracker.withdraw(graft.decision)
        return self._end(graft, Ruling(kept=False, why=fault.why), epoch=epoch)

    def _end(
        self,
        graft: Graft,
        ruling: Ruling,
        *,
        epoch: int,
        reward: float | None = None,
        stderr: float | None = None,
    ) -> Verdict:
        decision, name = graft.decision, graft.decision.layer_name
        seed_idx, kept, why = decision.seed_idx, ruling.kept, ruling.why
        verdict = Verdict(
            layer_name=name,
            seed_idx=seed_idx,
            blueprint=graft.kernel.blueprint,
            kernel_id=graft.kernel.kernel_id,
            parameters=graft.parameters,
            reward=reward,
            stderr=stderr,
            kept=kept,
            why=why,
            began=decision.epoch,
            epoch=epoch,
            passed=ruling.passed,
        )
        if not graft.lost:
            self._step(graft, SeedState.FOSSILIZED if kept else SeedState.CULLED, why, epoch)
        what = "the merge of a kernel into the host" if kept else "taking a kernel out of the model"
        with self.aside(what):
            graft.settle(kept=kept)
        self.grafts.remove(graft)
        with self.aside("the record of a graft's end"):
            facts = finite(verdict.facts)
            self.tracker.record_end(name, seed_idx, kept, decision=decision, facts=facts)
        self.selector.free(name, seed_idx, epoch)
        return verdict

    def _step(self, graft: Graft, state: SeedState, why: str, epoch: int) -> None:
        change = (graft.state, state)
        name, seed_idx = graft.decision.layer_name, graft.decision.seed_idx
        graft.layer.advance(seed_idx, state)
        self._note(name, seed_idx, change, why, epoch=epoch, graft=graft)

    def _note(
        self,
        layer_name: str,
        seed_idx: int,
        change: tuple[SeedState, SeedState],
        why: str,
        *,
        epoch: int,
        graft: Graft | None = None,
    ) -> None:
        step = Step(
            layer_name=layer_name,
            seed_idx=seed_idx,
            blueprint=self.layers[layer_name].seed_blueprints[seed_idx],
            old=str(change[0]),
            new=str(change[1]),
            why=why,
        )
        self._steps.append(step)
        kernel_id = graft.kernel.kernel_id if graft else None
        parameters = graft.parameters if graft else 0
        with self.aside("the record of a step"):
            self.log.step(step, epoch=epoch, kernel_id=kernel_id, parameters=parameters)

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything about the grafts that the model's own state dict does not hold."""
        return {
            "grafts": [
                {"decision": decision_data(graft.decision), "graft": graft.state_dict()}
                for graft in self.grafts
            ],
            "ended": {name: list(counts) for name, counts in self.ended.items()},
            "worth": self.judge.worth,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``; the model has been restored before."""
        self.grafts, ended = [], state.get("ended", {})  # a checkpoint of 0.1.0 has none
        self.judge.worth = state.get("worth")
        self.ended = {name: (judged, kept) for name, (judged, kept) in ended.items()}
        for saved in state["grafts"]:
            decision = decision_from(saved["decision"])
            seed = self.layers[decision.layer_name].seed(decision.seed_idx)
            kernel = seed.as_kernel()
            cost = KernelCost(
                parameters=count_parameters(kernel.module), latency_ms=saved["graft"]["latency_ms"]
            )
            baseline = Baseline(**saved["graft"]["baseline"])
            graft = self._graft(decision, replace(kernel, cost=cost), baseline)
            graft.load_state_dict(saved["graft"])
            self.grafts.append(graft)
            if decision.decision_id not in self.tracker.record_of(decision).open:
                # The store lost it, or is another one: the outcome must still find its decision.
                self.tracker.record_selection(
                    decision.layer_name, decision.seed_idx, decision=decision
                )

    def _graft(self, decision: Decision, kernel: Kernel, baseline: Baseline) -> Graft:
        layer = self.layers[decision.layer_name]
        return Graft(self.training, layer, decision=decision, kernel=kernel, baseline=baseline)
