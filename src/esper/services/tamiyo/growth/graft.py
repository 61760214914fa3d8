"""One graft: a kernel on its trip from germination to verdict.

It knows how to take the next step and what that step needs; *when* is said by the settings and the
epochs that have passed, *whether it stays* by its counterfactual.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, final

import torch
from torch import Tensor, nn

from esper.blueprints import is_placebo
from esper.contracts.config import Growth, Reward
from esper.contracts.performance import PerformanceDelta, rent
from esper.contracts.seeds import SeedState
from esper.contracts.selection import Decision
from esper.execution.copies.mirrors import Mirrors
from esper.execution.kernel import Kernel, count_parameters
from esper.execution.passes.counterfactual import Effect, counterfactuals, evaluate
from esper.execution.passes.isolation import Gradients, LossFn, Make, shadow_step
from esper.execution.replicas.replicas import ALONE, Replicas
from esper.execution.seeded import Seeded
from esper.execution.training.trainers import Trainers
from esper.services.tamiyo.growth.first_look import look
from esper.widths.first_rows import choose_rows

_SPOILT = 3
"""Batches in a row without a finite gradient after which a kernel is not fit to be blended in."""

_PATIENCE = 4
"""How many times its training a kernel may wait for the first batch that reaches its layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Held-out values at one time: for the naive deltas, when the graft began."""

    loss: float
    accuracy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The run that a graft takes part in: the user's own objects.

    Attributes:
        model: The wrapped model.
        trainers: Optimizers of the host, and of kernels from blending on, with their schedulers.
        mirrors: The user's containers that are paired with the model's parameters.
        loss_fn: Per-example losses.
        holdout: Batches that are never trained on.
        accuracy_fn: Per-example correctness, if it is to be recorded.
        replicas: The processes that train copies of the model.
    """

    model: nn.Module
    trainers: Trainers
    mirrors: Mirrors
    loss_fn: LossFn
    holdout: Iterable[Any]
    accuracy_fn: LossFn | None = None
    replicas: Replicas = ALONE

    def measure(self) -> Baseline:
        """Held-out values now."""
        share = self.replicas.losses
        loss = evaluate(self.model, self.loss_fn, self.holdout, share=share)
        if self.accuracy_fn is None:
            return Baseline(loss=loss)
        accuracy = evaluate(self.model, self.accuracy_fn, self.holdout, share=share)
        return Baseline(loss=loss, accuracy=accuracy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a graft must end before its verdict.

    Attributes:
        why: One sentence.
        of_kernel: True if the kernel is at fault, which is held against its blueprint; false if the
            training around it is.
    """

    why: str
    of_kernel: bool

    @classmethod
    def of_the_loop(cls, why: str) -> "Fault":
        """A fault of the training around the kernel."""
        return cls(why=f"failed by the loop: {why}", of_kernel=False)


@final
class Graft:
    """One trip of one kernel; ``baseline`` has the held-out values when it began."""

    def __init__(
        self,
        training: Training,
        layer: Seeded,
        *,
        decision: Decision,
        kernel: Kernel,
        baseline: Baseline,
    ) -> None:
        self.training = training
        self.layer = layer
        self.decision = decision
        self.kernel = kernel
        self.baseline = baseline
        self.fault: Fault | None = None
        """Why it must end; ``None`` while all is well."""
        self.trained = 0
        """Batches that reached its layer while it trained in isolation."""
        self._spoilt: Tensor | int = 0
        """Batches in a row, up to now, whose gradients were not finite; not read in mid-epoch."""
        self._since = decision.epoch
        self._blended = 0
        self._ramp = 0
        self._optimizer = training.trainers.seed_trainer(layer, kernel.module.parameters())

    @property
    def state(self) -> SeedState:
        """State of the seed."""
        return self.layer.seed_states[self.decision.seed_idx]

    @property
    def alpha(self) -> float:
        """Blend weight of the kernel, from 0 to 1."""
        return min(1.0, self._blended / self._ramp) if self._ramp else 0.0

    @property
    def auditions(self) -> bool:
        """True while it trains beside other seeds, of which the best is to go on."""
        return bool(self.decision.audition) and self.state is SeedState.TRAINING

    @property
    def lost(self) -> bool:
        """True if the seed holds another kernel, or none: a state dict was loaded."""
        return self.layer.seed(self.decision.seed_idx).kernel is not self.kernel.module

    @property
    def placebo(self) -> bool:
        """True if its kernel cannot help, and is judged only to see how often such ones pass."""
        return is_placebo(self.kernel.blueprint)

    @property
    def parameters(self) -> int:
        """Trainable parameters of the kernel."""
        return count_parameters(self.kernel.module)

    @property
    def memory_mb(self) -> float:
        """Memory of the kernel's parameters, in megabytes."""
        return sum(p.numel() * p.element_size() for p in self.kernel.module.parameters()) / 1e6

    def choose_rows(self, batches: Sequence[Any]) -> None:
        """Choose the first values of a kernel that reads a width from recent training batches."""
        training, place = self.training, (self.layer, self.decision.seed_idx)
        with training.replicas.together("the choice of a kernel's first values"):
            choose_rows(*place, training.model, training.loss_fn, batches)
        training.replicas.equalise(self.kernel.module)

    def on_batch(self, batch: Any) -> None:
        """Train in the shadow, or raise alpha a little."""
        if self.state is SeedState.TRAINING:
            training, place = self.training, (self.layer, self.decision.seed_idx)
            passes: dict[str, Any] = {"loss_fn": training.loss_fn, "batch": batch}
            if not self.trained:
                look(training.model, *place, **passes, replicas=training.replicas)
                training.replicas.equalise(self.kernel.module)
            loss = shadow_step(
                training.model, *place, **passes, optimizer=self._optimizer, reduce=self._usable
            )
            self.trained += loss is not None
        elif self.state is SeedState.BLENDING:
            self._blended += 1
            alpha = min(1.0, self._blended / self._ramp)
            self.layer.set_alpha(self.decision.seed_idx, alpha)

    def _usable(self, make: Make, like: Sequence[Tensor]) -> Gradients | None:
        """Gradients of all processes; zeros if one is NaN or infinite, as in a batch with NaN.

        To pass the step over, as a gradient scaler does, would be to wait for the device each time.
        """
        gradients = self.training.replicas.mean(make, like)
        finite = [one.isfinite().all() for one in gradients or () if one is not None]
        if gradients is None or not finite:
            return gradients
        usable = torch.stack(finite).all()
        self._spoilt = (self._spoilt + 1) * ~usable
        return [None if one is None else one.where(usable, 0.0) for one in gradients]

    def due(self, epoch: int, growth: Growth, *, measured: bool) -> SeedState | None:
        """The state that is due at the end of this epoch, if any.

        A kernel without a held-out loss (``measured`` is false) is neither blended in nor judged;
        it waits for one epoch.
        """
        blending = self.state is SeedState.BLENDING
        alone = growth.train_epochs or int(self.auditions)
        overdue = epoch - self._since - (growth.blend_epochs if blending else alone)
        if overdue < 0 or not (blending or self.state is SeedState.TRAINING):
            return None
        if not (blending or self.trained):
            return SeedState.CULLED if overdue >= (_PATIENCE - 1) * alone else None
        if not measured:
            return SeedState.CULLED if overdue else None
        return SeedState.HOLDING if blending else SeedState.BLENDING

    def failed(self, why: str) -> Fault:
        """The fault of a graft whose training failed: its kernel's, if that cannot learn alone."""
        able = self.layer.can_learn(self.kernel)
        return Fault.of_the_loop(why) if able else Fault(why=why, of_kernel=True)

    @property
    def ailment(self) -> Fault | None:
        """Why its kernel must not be blended in or judged; ``None`` if all is well."""
        if self.fault is not None:
            return self.fault
        if not all(bool(torch.isfinite(p).all()) for p in self.kernel.module.parameters()):
            return Fault(why="its weights became NaN or infinite", of_kernel=True)
        spoilt = int(self._spoilt)
        if self.state is not SeedState.TRAINING or spoilt < min(_SPOILT, max(1, self.trained)):
            return None
        why = (
            f"the gradients of the last {spoilt} of {self.trained} batches that it trained on were "
            "NaN or infinite; are the batches that on_batch_end gets, and the loss, finite?"
        )
        return Fault(why=why, of_kernel=True) if spoilt < self.trained else self.failed(why)

    def left_waiting(self) -> Fault:
        """The fault of a graft that waited in vain: for a batch, or for a measurement."""
        if self.trained:
            return Fault.of_the_loop("the held-out loss could not be measured, epoch after epoch")
        why = (
            f"no batch's loss depended on layer {self.layer.name!r} while its kernel waited to "
            "learn; is the layer used in training, outside torch.no_grad and outside reentrant "
            "checkpointing?"
        )
        return Fault.of_the_loop(why)

    def blend(self, epoch: int, *, ramp_batches: int) -> None:
        """From now on the user's optimizer trains the kernel, with the state it has gathered.

        Args:
            epoch: At whose end this happens.
            ramp_batches: Batches in which alpha goes from 0 to 1; 0 sets it to 1 at once.
        """
        self._since, self._blended, self._ramp = epoch, 0, max(1, ramp_batches)
        if not ramp_batches:
            self._blended = 1
            self.layer.set_alpha(self.decision.seed_idx, 1.0)
        # Named by the kernel, not by the slot, which may grow again while this one stays.
        named = self.kernel.module.named_parameters(prefix=self.kernel.kernel_id)
        self.training.trainers.adopt(self.layer, list(named), source=self._optimizer)
        self.training.mirrors.follow()

    def resume(self, epoch: int) -> None:
        """Go on from the seed's state, which a state dict may have set back or forward."""
        if self.state is SeedState.TRAINING and self._ramp:
            self._since, self._ramp = epoch, 0
        elif self.state is SeedState.BLENDING and not self._ramp:
            self.blend(epoch, ramp_batches=1)

    def judge(self, calibration: Sequence[Any], beside: Sequence["Graft"] = ()) -> list[Effect]:
        """Counterfactuals on held-out data, as things stand: its own, then those of its cohort."""
        return counterfactuals(
            self.training.model,
            [(graft.layer, graft.decision.seed_idx) for graft in (self, *beside)],
            self.training.loss_fn,
            self.training.holdout,
            calibration,
            self.training.replicas.losses,
        )

    def rent(self, settings: Reward) -> float:
        """Reward that is charged for the kernel."""
        cost = self.kernel.cost
        return rent(
            self.parameters,
            cost.latency_ms if cost else None,
            per_kparam=settings.rent_per_kparam,
            per_ms=settings.rent_per_ms,
        )

    def outcome(self, now: Baseline, effect: Effect, settings: Reward) -> PerformanceDelta:
        """Measurement of the graft: its effect, and the naive deltas since it began."""
        return PerformanceDelta(
            accuracy_delta=_difference(now.accuracy, self.baseline.accuracy),
            loss_delta=self.baseline.loss - now.loss,
            memory_mb=self.memory_mb,
            reward=effect.gain if settings.kind == "counterfactual" else None,
            reward_stderr=effect.stderr,
            rent=self.rent(settings) or None,
        )

    def settle(self, *, kept: bool) -> None:
        """Merge a kernel that stays; have optimizers and schedulers drop the parameters of another.

        Then the user's containers follow.
        """
        if kept:
            self.training.trainers.merge(self.layer)
        else:
            self.training.trainers.discard(self.kernel.module.parameters())
        self.training.mirrors.follow()

    def state_dict(self) -> dict[str, Any]:
        """Progress, baseline and optimizer; the model and the decision are saved apart."""
        return {
            "since": self._since,
            "blended": self._blended,
            "ramp": self._ramp,
            "trained": self.trained,
            "spoilt": int(self._spoilt),
            "baseline": {"loss": self.baseline.loss, "accuracy": self.baseline.accuracy},
            "latency_ms": self.kernel.cost.latency_ms if self.kernel.cost else None,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``, on a graft over the restored model."""
        self._since, self._blended, self._ramp = state["since"], state["blended"], state["ramp"]
        self.trained = state.get("trained", 1)  # a checkpoint of 0.1.0 has no count
        self._spoilt = state.get("spoilt", 0)
        self._optimizer.load_state_dict(state["optimizer"])


def alphas_of(grafts: Iterable[Graft]) -> dict[str, float]:
    """Alphas of the kernels that are being blended in, by layer and seed: ``"fc1:0"``."""
    return {
        f"{graft.decision.layer_name}:{graft.decision.seed_idx}": graft.alpha
        for graft in grafts
        if graft.state is SeedState.BLENDING
    }


def _difference(after: float | None, before: float | None) -> float | None:
    if after is None or before is None or not isfinite(after - before):
        return None
    return after - before
