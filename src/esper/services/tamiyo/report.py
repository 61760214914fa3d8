"""What Tamiyo tells a person at the end of an epoch."""

from dataclasses import dataclass

from typing_extensions import override

from esper.contracts.selection import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A seed changed its state.

    Attributes:
        layer_name: Its layer.
        seed_idx: The seed.
        blueprint: What it grows.
        old: State before.
        new: State after.
        why: One sentence.
    """

    layer_name: str
    seed_idx: int
    blueprint: str
    old: str
    new: str
    why: str

    @override
    def __str__(self) -> str:
        return f"{self.layer_name}:{self.seed_idx} ({self.blueprint}) {self.new}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a graft ended.

    Attributes:
        layer_name: Its layer.
        seed_idx: The seed.
        blueprint: What grew.
        kernel_id: The kernel.
        parameters: Trainable parameters of the kernel.
        reward: Held-out loss that it removes, less rent; ``None`` if it failed before it was
            judged.
        stderr: Paired standard error of the counterfactual.
        kept: Whether it stays.
        why: One sentence.
        began: Epoch at whose end the graft began.
        epoch: Epoch at whose end it was judged.
    """

    layer_name: str
    seed_idx: int
    blueprint: str
    kernel_id: str
    parameters: int
    reward: float | None
    stderr: float | None
    kept: bool
    why: str
    began: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """What was measured and done at the end of one epoch, and why; ``print`` it.

    Attributes:
        epoch: From 0.
        holdout_loss: Mean held-out loss.
        holdout_accuracy: Mean held-out accuracy, if ``accuracy_fn`` was given.
        used: Parameters of all kernels, absorbed or under way.
        budget: Parameters that growth may add in all.
        steps: Changes of state, in order.
        verdicts: Grafts that ended.
        decision: The graft that began, if one did.
        reason: Why a graft began, or why none did.
    """

    epoch: int
    holdout_loss: float
    holdout_accuracy: float | None
    used: int
    budget: int
    steps: tuple[Step, ...]
    verdicts: tuple[Verdict, ...]
    decision: Decision | None
    reason: str

    @override
    def __str__(self) -> str:
        accuracy = (
            "" if self.holdout_accuracy is None else f", accuracy {self.holdout_accuracy:.1%}"
        )
        head = (
            f"epoch {self.epoch}: held-out loss {self.holdout_loss:.4f}{accuracy}, "
            f"{self.used} of {self.budget} parameters grown"
        )
        lines = [head, *(f"  {step}" for step in self.steps)]
        if self.decision is not None:
            lines.append(f"  chose seed {self.decision.seed_idx}: {self.decision.reason.reason}")
        lines.append(f"  {self.reason}")
        return "\n".join(lines)
