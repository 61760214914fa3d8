"""Knowledge of `auto`: rewards as they are, and relative worths once seeds have auditioned."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, final

from typing_extensions import override

from esper.contracts.audition import Contrast
from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision, SelectionContext
from esper.records.history import writer_of
from esper.records.layer import LayerKnowledge
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.pooling import kind_of
from esper.strategies.pooled.worths import Gain, Pair, RelativeWorths

_CLEAR = 2.0
"""Standard errors that gains of a cohort must be from 0, root mean square, to teach anything."""


@final
class PooledKnowledge(LayerKnowledge):
    """Rewards of a layer's seeds, and the worths that all layers and runs of a history share.

    Attributes:
        rewards: In the reward's own units.
        worths: Relative to what an average seed of a run earns; nothing until seeds audition.
    """

    __slots__ = ("_cohort", "rewards", "worths")

    def __init__(self, *, restarts: bool = True) -> None:
        self.rewards = Beliefs(restarts=restarts)
        self.worths = RelativeWorths()
        self._cohort: dict[str, list[Gain]] = {}

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, PooledKnowledge):
            self.rewards.join(other.rewards)
            self.worths, self._cohort = other.worths, other._cohort

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        self.learn_measured(seed_idx, reward, 0.0, decision)

    @override
    def learn_measured(
        self, seed_idx: int, reward: float, stderr: float, decision: Decision | None
    ) -> None:
        self.rewards.learn(seed_idx, reward, decision)
        if decision is None:
            return
        self.worths.locate(decision.layer_name, decision.depth)
        run = writer_of(decision.decision_id, decision.layer_name)
        pair = _pair_of(decision)
        gain = Gain(pair, reward, stderr, self.worths.lead(pair, decision.promise))
        if self.worths.taught:
            self.worths.learn_outcome(run, gain, audition=bool(decision.audition))
        else:
            self.worths.learn_untaught(run, gain)

    @override
    def learn_audition(self, seed_idx: int, contrast: Contrast, decision: Decision) -> None:
        self.worths.taught = True
        self.worths.locate(decision.layer_name, decision.depth)
        if contrast.point not in self._cohort:
            self._cohort.clear()
        cohort = self._cohort.setdefault(contrast.point, [])
        pair = _pair_of(decision)
        lead = self.worths.lead(pair, decision.promise)
        cohort.append(Gain(pair, contrast.gain, contrast.stderr, lead))
        if len(cohort) == contrast.cohort and _is_clear(cohort):
            run = writer_of(decision.decision_id, decision.layer_name)
            self.worths.learn_audition(run, cohort)

    @override
    def learn_unlogged(
        self, seed_idx: int, reward: float, blueprint: str, context: SelectionContext
    ) -> None:
        self.rewards.learn_unlogged(seed_idx, reward, blueprint, context)

    @override
    def forget(self, seed_idx: int) -> None:
        self.rewards.forget(seed_idx)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**self.rewards.state_dict(), "worths": self.worths.state_dict()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rewards.load_state_dict(state)
        try:
            if (worths := state.get("worths")) is not None:  # a state of 0.1.0 has none
                self.worths.load_state_dict(worths)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"the worths of a state cannot be read: {error!r}") from error


def _is_clear(cohort: Sequence[Gain]) -> bool:
    """True if gains, or what they differ by, stand out of their noise."""
    squares = fmean(gain.gain**2 for gain in cohort)
    return squares > _CLEAR**2 * fmean(gain.stderr**2 for gain in cohort)


def pairs_of(layer_name: str, seeds: Sequence[int], kinds: Mapping[int, str]) -> list[Pair]:
    """Pair of each seed of a layer; a seed without a kind is a kind of its own.

    Example:
        >>> pairs_of("fc1", [0, 1], {0: "Linear/glu", 1: ""})
        [('fc1', 'Linear/glu'), ('fc1', 'seed 1 of fc1')]
    """
    return [(layer_name, kinds[seed] or f"seed {seed} of {layer_name}") for seed in seeds]


def _pair_of(decision: Decision) -> Pair:
    kind = kind_of(decision.layer_type, decision.blueprint)
    return pairs_of(decision.layer_name, [decision.seed_idx], {decision.seed_idx: kind})[0]
