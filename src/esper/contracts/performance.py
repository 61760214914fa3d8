"""What came of a graft: the measurement, the record of a seed, and the one reward function."""

from dataclasses import dataclass, field
from math import isfinite

from esper.contracts.errors import MeasurementError


@dataclass(frozen=True, slots=True)
class PerformanceDelta:
    """What one graft, or one epoch of it, changed; ``None`` is unmeasured, which is not zero.

    Attributes:
        accuracy_delta: Held-out accuracy gained, as a fraction; > 0 is better.
        loss_delta: Held-out loss *removed*; > 0 means that the loss went down.
        latency_ms: Forward latency of the kernel, in milliseconds.
        memory_mb: Memory of the kernel, in megabytes.
        reward: The counterfactual: held-out loss with the seed off minus with it on.
        reward_stderr: Paired standard error of ``reward``.
    """

    accuracy_delta: float | None = None
    loss_delta: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    reward: float | None = field(default=None, kw_only=True)
    reward_stderr: float | None = field(default=None, kw_only=True)


def reward(delta: PerformanceDelta) -> float:
    """The one number that a strategy learns from; larger is better.

    The counterfactual where it was measured; otherwise the mean of those of ``accuracy_delta`` and
    ``loss_delta`` that were.

    Raises:
        MeasurementError: if nothing was measured, or any measurement is NaN or infinite.

    Example:
        >>> reward(PerformanceDelta(accuracy_delta=0.01, loss_delta=0.03))
        0.02
        >>> reward(PerformanceDelta(accuracy_delta=0.01, loss_delta=0.03, reward=0.5))
        0.5
    """
    require_finite(delta)
    if delta.reward is not None:
        return delta.reward
    if delta.accuracy_delta is None:
        if delta.loss_delta is None:
            raise MeasurementError(
                "an outcome needs a measurement: give reward, loss_delta or accuracy_delta"
            )
        return delta.loss_delta
    if delta.loss_delta is None:
        return delta.accuracy_delta
    return (delta.accuracy_delta + delta.loss_delta) / 2


def require_finite(delta: PerformanceDelta) -> None:
    """Refuse NaN and infinity.

    Raises:
        MeasurementError: naming the first measurement that is not finite.
    """
    for name in PerformanceDelta.__slots__:
        value = getattr(delta, name)
        if value is not None and not isfinite(value):
            raise MeasurementError(
                f"{name} is {value}; a measurement must be finite. Leave it out (None) if it could "
                "not be taken"
            )


@dataclass(slots=True)
class SeedPerformanceMetrics:
    """The record of one seed under one blueprint; windows hold the newest values last.

    Attributes:
        seed_idx: Slot of the layer.
        layer_name: Dotted name of the layer.
        kernel_id: The kernel that was measured last.
        accuracy_improvements: Window of ``PerformanceDelta.accuracy_delta``.
        loss_reductions: Window of ``PerformanceDelta.loss_delta``.
        execution_latencies: Window of ``PerformanceDelta.latency_ms``.
        memory_usage: Window of ``PerformanceDelta.memory_mb``.
        total_activations: Times this seed was chosen, ever.
        successful_grafts: Kernels that were kept.
        failed_attempts: Grafts that failed with an error.
        last_activation_epoch: Epoch of the latest choice; -1 before the first.
        ucb_score: What ``ucb`` would score now.
        thompson_score: Posterior mean of ``thompson``.
        performance_score: Exponentially weighted mean of the window, standardised.
        blueprint: What was bound to the seed; a new blueprint starts a new record.
        rewards: Window of rewards, in the reward's own units.
    """

    seed_idx: int
    layer_name: str
    kernel_id: str | None = None
    accuracy_improvements: list[float] = field(default_factory=list)
    loss_reductions: list[float] = field(default_factory=list)
    execution_latencies: list[float] = field(default_factory=list)
    memory_usage: list[float] = field(default_factory=list)
    total_activations: int = 0
    successful_grafts: int = 0
    failed_attempts: int = 0
    last_activation_epoch: int = -1
    ucb_score: float = 0.0
    thompson_score: float = 0.0
    performance_score: float = 0.0
    blueprint: str = ""
    rewards: list[float] = field(default_factory=list)
