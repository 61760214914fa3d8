"""Measurement of a graft, record of a seed, and the one reward function."""

from dataclasses import dataclass, field
from math import fsum
from typing import Protocol

from esper.contracts.errors import MeasurementError

LARGEST = 1e100
"""Magnitude below which a measurement must stay, so that no sum of squares overflows."""


@dataclass(frozen=True, slots=True)
class PerformanceDelta:
    """Change that one graft, or one epoch of it, made; ``None`` is unmeasured, which is not zero.

    Attributes:
        accuracy_delta: Held-out accuracy gained, as a fraction; > 0 is better.
        loss_delta: Held-out loss *removed*; > 0 means that the loss went down.
        latency_ms: Forward latency of the kernel, in milliseconds.
        memory_mb: Memory of the kernel, in megabytes.
        reward: The counterfactual: held-out loss with the seed off minus with it on.
        reward_stderr: Paired standard error of ``reward``; >= 0.
        rent: Charge for the kernel, in units of the reward; >= 0.
    """

    accuracy_delta: float | None = None
    loss_delta: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    reward: float | None = field(default=None, kw_only=True)
    reward_stderr: float | None = field(default=None, kw_only=True)
    rent: float | None = field(default=None, kw_only=True)


def reward(
    delta: PerformanceDelta,
    *,
    parameters: int = 0,
    rent_per_kparam: float = 0.0,
    rent_per_ms: float = 0.0,
) -> float:
    """The one number that a strategy learns from; larger is better.

    The counterfactual where it was measured; otherwise the mean of those of ``accuracy_delta`` and
    ``loss_delta`` that were. Less ``delta.rent``, and the rent that is charged here.

    Args:
        delta: What was measured.
        parameters: Trainable parameters of the kernel.
        rent_per_kparam: Reward charged per 1,000 of them.
        rent_per_ms: Reward charged per millisecond of ``delta.latency_ms``.

    Raises:
        MeasurementError: if nothing was measured, any measurement is NaN or infinite, or rent is
            charged on a latency that was not measured.

    Example:
        >>> reward(PerformanceDelta(accuracy_delta=0.01, loss_delta=0.03))
        0.02
        >>> reward(PerformanceDelta(accuracy_delta=0.01, loss_delta=0.03, reward=0.5))
        0.5
        >>> reward(PerformanceDelta(reward=0.5), parameters=2_000, rent_per_kparam=0.125)
        0.25
    """
    require_finite(delta)
    charged = rent(parameters, delta.latency_ms, per_kparam=rent_per_kparam, per_ms=rent_per_ms)
    return _gain(delta) - (delta.rent or 0.0) - charged


def rent(
    parameters: int, latency_ms: float | None, *, per_kparam: float = 0.0, per_ms: float = 0.0
) -> float:
    """Reward charged for a kernel's parameters and latency.

    Args:
        parameters: Trainable parameters of the kernel.
        latency_ms: Its forward latency, in milliseconds; ``None`` if it was not measured.
        per_kparam: Charged per 1,000 parameters.
        per_ms: Charged per millisecond.

    Raises:
        MeasurementError: if latency is charged but was not measured.

    Example:
        >>> rent(2_000, 0.5, per_kparam=0.125, per_ms=0.5)
        0.5
    """
    charged = per_kparam * parameters / 1000
    if not per_ms:
        return charged
    if latency_ms is None:
        raise MeasurementError(
            "rent_per_ms is charged but latency_ms was not measured; measure it or set the rent to "
            "0"
        )
    return charged + per_ms * latency_ms


def require_finite(delta: PerformanceDelta) -> None:
    """Refuse NaN, infinity, what is no number at all, and a standard error or rent below 0.

    Raises:
        MeasurementError: naming the first measurement that is not finite.
    """
    if not isinstance(delta, PerformanceDelta):
        raise MeasurementError(
            f"an outcome is {delta!r}; give a PerformanceDelta, as PerformanceDelta(reward=0.5)"
        )
    for name in PerformanceDelta.__slots__:
        value = getattr(delta, name)
        if value is None:
            continue
        try:
            if -LARGEST < value < LARGEST:
                continue
        except TypeError as error:
            raise MeasurementError(
                f"{name} is {value!r}; a measurement must be a number. Leave it out (None) if it "
                "could not be taken"
            ) from error
        raise MeasurementError(
            f"{name} is {value}; a measurement must be finite (below {LARGEST:g}). Leave it out "
            "(None) if it could not be taken"
        )
    for name in ("reward_stderr", "rent"):
        if (getattr(delta, name) or 0.0) < 0:
            raise MeasurementError(f"{name} is {getattr(delta, name)}; it must be >= 0")


class SeedStatistics(Protocol):
    """Statistics of one seed that strategies read: sums over its window, never the window."""

    @property
    def count(self) -> int:
        """Outcomes inside the window."""

    @property
    def mean(self) -> float:
        """Mean reward of the window; 0 if it is empty."""

    @property
    def m2(self) -> float:
        """Sum of squared deviations from ``mean`` over the window."""

    @property
    def recent(self) -> float:
        """Exponentially weighted mean of the rewards, the newest weighing most."""

    @property
    def outcomes(self) -> int:
        """Outcomes ever, failures included; >= ``count``."""

    @property
    def total_activations(self) -> int:
        """Times the seed was chosen, ever."""

    @property
    def pending(self) -> int:
        """Choices whose outcome has not come yet."""


@dataclass(slots=True)
class SeedPerformanceMetrics:
    """The record of one seed under one blueprint; windows hold the newest values last.

    What is built by hand need only have the fields of the design: rewards that are not given are
    worked out from ``accuracy_improvements`` and ``loss_reductions`` by `reward`.

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
        ucb_score: What ``ucb`` would score now, by default settings; inf where untried.
        thompson_score: Posterior mean of ``thompson``, by default settings, in (0, 1).
        performance_score: Exponentially weighted mean of the rewards, standardised.
        blueprint: What was bound to the seed; a new blueprint starts a new record.
        rewards: Window of rewards, in the reward's own units; a failed graft counts as 0.
        total_outcomes: Outcomes ever, failures included.
        recent_reward: Exponentially weighted mean of all rewards; worked out from the window if
            not given.
        decay_factor: Weight of an outcome relative to the one after it, in (0, 1].
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
    total_outcomes: int = 0
    recent_reward: float | None = None
    decay_factor: float = 0.9

    @property
    def count(self) -> int:
        """Outcomes inside the window."""
        return len(self.window())

    @property
    def mean(self) -> float:
        """Mean reward of the window; 0 if it is empty."""
        rewards = self.window()
        return fsum(rewards) / len(rewards) if rewards else 0.0

    @property
    def m2(self) -> float:
        """Sum of squared deviations from the mean over the window."""
        rewards = self.window()
        mean = self.mean
        return fsum((value - mean) ** 2 for value in rewards)

    @property
    def recent(self) -> float:
        """Exponentially weighted mean of the rewards."""
        if self.recent_reward is not None:
            return self.recent_reward
        recent = weight = 0.0
        for value in self.window():
            weight = weight * self.decay_factor + 1.0
            recent += (value - recent) / weight
        return recent

    @property
    def pending(self) -> int:
        """Choices whose outcome has not come yet."""
        return max(self.total_activations - self.outcomes, 0)

    @property
    def outcomes(self) -> int:
        """Outcomes ever, failures included."""
        return max(self.total_outcomes, self.count)

    def window(self) -> list[float]:
        """Rewards of the window, oldest first; worked out if they were not given."""
        if self.rewards or not (self.accuracy_improvements or self.loss_reductions):
            return self.rewards
        # The newest values belong together; a shorter window lacks the oldest.
        longest = max(len(self.accuracy_improvements), len(self.loss_reductions))
        gains = [None] * (longest - len(self.accuracy_improvements)) + self.accuracy_improvements
        falls = [None] * (longest - len(self.loss_reductions)) + self.loss_reductions
        return [
            reward(PerformanceDelta(accuracy_delta=gain, loss_delta=fall))
            for gain, fall in zip(gains, falls, strict=True)
        ]


def _gain(delta: PerformanceDelta) -> float:
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
