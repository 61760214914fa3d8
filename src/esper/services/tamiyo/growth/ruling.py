"""Ruling: whether a kernel has earned its place, and the sentence that says so."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from esper.contracts.config import Config, Growth
from esper.contracts.seeds import SeedState
from esper.execution.passes.counterfactual import Effect, leave_one_out
from esper.execution.side_effect_free import keeps_statistics
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.graft import Graft, Training


@final
@dataclass(frozen=True, slots=True)
class Ruling:
    """Ruling on a kernel.

    Attributes:
        kept: Whether it stays.
        why: Reason, one sentence.
        passed: Of a placebo that was judged, whether another kernel would have been kept for this.
    """

    kept: bool
    why: str
    passed: bool | None = None


UNJUDGED = Ruling(kept=True, why="kept without a verdict, as growth.judge is never")


@final
class Judge:
    """Counterfactuals of the kernels whose verdicts are due, as ``growth.judge`` says.

    Attributes:
        worth: Held-out loss that the kernels judged last remove together, and its standard error;
            ``None`` if they were not judged together.
        shrunk: Their gains as `pooled` gives them.
    """

    def __init__(self, training: Training, growth: Growth, aside: Aside) -> None:
        self.training = training
        self.growth = growth
        self.aside = aside
        self.worth: Sequence[float] | None = None
        self.shrunk: dict[Graft, float] = {}
        self._effects: dict[Graft, Effect] = {}

    def prepare(self, grafts: Iterable[Graft], epoch: int, calibration: Sequence[Any]) -> None:
        """Judge all that are due at the end of this epoch beside each other, if that is wanted.

        Not if the running statistics of the model have to be estimated for each by itself.
        """
        self._effects, self.shrunk = {}, {}
        if self.growth.judge != "together" or (
            calibration and keeps_statistics(self.training.model)
        ):
            return
        able = [graft for graft in grafts if graft.ailment is None]
        due = [g for g in able if g.due(epoch, self.growth, measured=True) is SeedState.HOLDING]
        if not due:
            return
        with self.aside("the counterfactuals of kernels"):
            effects, together = leave_one_out(
                self.training.model,
                [(graft.layer, graft.decision.seed_idx) for graft in due],
                loss_fn=self.training.loss_fn,
                holdout=self.training.holdout,
                share=self.training.replicas.losses,
            )
            self._effects = dict(zip(due, effects, strict=True))
            self.shrunk = dict(zip(due, pooled(effects, together.gain), strict=True))
            self.worth = [together.gain, together.stderr]

    def effect(self, graft: Graft, calibration: Sequence[Any]) -> Effect | None:
        """Counterfactual of a graft that holds; ``None`` if none is to be taken."""
        if self.growth.judge == "never":
            return None
        if (found := self._effects.get(graft)) is None:
            (found,) = graft.judge(calibration)
        return found


def passes(graft: Graft, effect: Effect, config: Config) -> bool:
    """True if the effect, rent charged, is more than ``keep_stderrs`` standard errors."""
    worth = effect.gain - graft.rent(config.reward)
    return worth > config.growth.keep_stderrs * effect.stderr


def pooled(effects: Sequence[Effect], total: float) -> list[float]:
    """Gains of kernels that were judged beside each other, each pulled towards their mean.

    The mean is that of their worth together, and the pull is the stronger, the less of their spread
    is more than error: the posterior mean under a normal prior fitted to all of them.

    Example:
        >>> one = Effect(gain=0.5, stderr=1.0, loss_off=2.0, loss_on=1.5, examples=9)
        >>> other = replace(one, gain=-0.3)
        >>> pooled([one, other], 0.4)  # no spread beyond error: the mean for both
        [0.2, 0.2]
        >>> sharp = [replace(each, stderr=0.1) for each in (one, other)]
        >>> [round(gain, 2) for gain in pooled(sharp, 0.4)]
        [0.48, -0.27]
    """
    mean = total / len(effects)
    excess = [(effect.gain - mean) ** 2 - effect.stderr**2 for effect in effects]
    between = max(0.0, sum(excess) / len(effects))
    weights = [between / (between + effect.stderr**2) if between else 0.0 for effect in effects]
    return [
        mean + weight * (effect.gain - mean)
        for weight, effect in zip(weights, effects, strict=True)
    ]


def rule(graft: Graft, effect: Effect, config: Config, shrunk: float | None = None) -> Ruling:
    """Keep a kernel that passes, unless it is a placebo.

    Args:
        graft: The graft.
        effect: Its counterfactual.
        config: The settings.
        shrunk: Its gain as `pooled` gives it, by which it is judged if there is one.
    """
    judged = effect if shrunk is None else replace(effect, gain=shrunk)
    passed = passes(graft, judged, config)
    worth = effect.gain - graft.rent(config.reward)
    beside = "" if shrunk is None else f", {shrunk:+.4f} if pooled with the others"
    measured = (
        f"worth {worth:+.4f} ± {effect.stderr:.4f} of held-out loss{beside}: "
        f"{'more' if passed else 'not more'} than {config.growth.keep_stderrs:g} standard errors"
    )
    if not graft.placebo:
        return Ruling(passed, measured)
    would = "would have been kept" if passed else "would not have been kept either"
    return Ruling(False, f"a placebo, which is never kept; it {would}: {measured}", passed)
