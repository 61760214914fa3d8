"""A bandit and nothing else: choose an arm, tell what it earned, for whoever needs no more.

It chooses what `SeedSelector` would choose for a layer of as many seeds, by the same strategies and
with the same random numbers, without store, constraints, reservations and blueprints.
"""

from collections.abc import Mapping
from operator import index
from typing import Any, cast, final

from esper.contracts.config import Performance
from esper.contracts.errors import ConfigError, MeasurementError, SelectionError
from esper.contracts.performance import LARGEST
from esper.contracts.selection import Decision, SelectionContext, SelectionReason
from esper.services.tamiyo.history import History
from esper.services.tamiyo.layer_record import LayerRecord
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.saved import history_data, history_from
from esper.services.tamiyo.seed_record import OPEN, SeedRecord, grow, mean_and_m2, slide
from esper.services.tamiyo.seed_selector import first_try
from esper.services.tamiyo.standing import Standing
from esper.services.tamiyo.strategies import STRATEGIES
from esper.services.tamiyo.strategies._base import (
    Picked,
    SelectionStrategy,
    alone_at_top,
    pick_row,
)

_WINDOW = Performance().window_size
_DECAY = Performance().decay_factor
_UNDRAWN = Draws(0, "", 0)


@final
class Bandit:
    """Chooses among arms by any strategy, and learns from what they earn.

    Every arm is tried once first. Rewards are remembered as a `PerformanceTracker` does by default:
    the last 20 of each arm. Not safe to use from several threads at once.

    By ``ucb`` and by ``thompson`` with ``posterior="gaussian"``, once every arm has earned
    something, a choice costs a few microseconds; by any other strategy, what it does in a
    `SeedSelector`.

    Args:
        strategy: Who decides; a name stands for the strategy with its defaults.
        arms: How many arms there are, >= 1.
        seed: Seed of all randomness.
        name: What else the random numbers depend on; bandits of different names draw apart.

    Raises:
        ConfigError: if an argument is none of these.

    Example:
        >>> bandit = Bandit("ucb", arms=3)
        >>> for _ in range(200):
        ...     arm = bandit.choose()
        ...     bandit.update(arm, (0.1, 0.5, 0.2)[arm])
        >>> bandit.choose(), bandit.explain().propensity
        (1, 1.0)
    """

    __slots__ = (
        "_choices",
        "_draws",
        "_latest",
        "_open",
        "_outcomes",
        "_recorded",
        "_rings",
        "_score",
        "_standing",
        "arms",
        "name",
        "seed",
        "strategy",
    )

    def __init__(
        self,
        strategy: SelectionStrategy | str,
        arms: int = 8,
        *,
        seed: int = 0,
        name: str = "bandit",
    ) -> None:
        if isinstance(strategy, str):
            strategy = STRATEGIES.create(strategy)
        if not isinstance(strategy, SelectionStrategy):
            raise ConfigError(f"strategy is {strategy!r}; give a strategy or its name, as 'ucb'")
        if not isinstance(arms, int) or isinstance(arms, bool) or arms < 1:
            raise ConfigError(f"arms is {arms!r}; it must be a whole number >= 1")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"seed is {seed!r}; it must be a whole number")
        if not isinstance(name, str):
            raise ConfigError(f"name is {name!r}; it must be text")
        self.strategy = strategy
        self.arms = arms
        self.seed = seed
        self.name = name
        self._recorded = Recorded(self.strategy, self.arms, self.name, self.seed)
        self._latest: SelectionReason | tuple[int, list[float], float, int, Any] | None = None
        # Only once every arm has earned something, and for a quick strategy:
        self._standing: Standing | None = None
        self._draws, self._score = strategy.draws_scores, strategy.score_columns
        self._choices = 0
        self._open: list[int] = []
        self._outcomes: list[int] = []
        self._rings: list[list[float]] = []

    def choose(self) -> int:
        """The arm to pull next, in [0, ``arms``)."""
        standing = self._standing
        if standing is None:
            decision = self._recorded.decide()
            self._latest = decision.reason
            return decision.seed_idx
        number = self._choices
        self._choices = number + 1
        rng = Draws(self.seed, self.name, number) if self._draws else _UNDRAWN
        pending = self._open
        scores, evidence = self._score(standing, pending, rng)
        arm, propensity = alone_at_top(scores), 1.0
        if arm < 0:
            arm, propensity = pick_row(scores, Draws(self.seed, self.name, number))
        self._latest = (arm, scores, propensity, standing.counts[arm], evidence)
        if pending[arm] < OPEN:
            pending[arm] += 1
        return arm

    def update(self, arm: int, reward: float) -> None:
        """Tell what an arm earned; it need not be the latest that was chosen.

        Raises:
            SelectionError: if there is no such arm.
            MeasurementError: if the reward is NaN, infinite or no number.
        """
        if type(arm) is not int or type(reward) is not float:
            arm, reward = self._plain(arm, reward)
        if not (0 <= arm < self.arms and -LARGEST < reward < LARGEST):
            raise _refusal(arm, self.arms, reward)
        standing = self._standing
        if standing is None:
            self._tell(arm, reward)
            return
        ring, count, outcomes = self._rings[arm], standing.counts[arm], self._outcomes
        mean, m2, place = standing.means[arm], standing.m2s[arm], outcomes[arm] % _WINDOW
        outcomes[arm] += 1
        if count < _WINDOW:
            ring.append(reward)
            count += 1
            mean, m2 = grow(mean, m2, count, reward)
        else:
            fallen = ring[place]
            ring[place] = reward
            if fallen != reward:
                slid = slide(mean, m2, count, fallen, reward)
                if slid is None or place == _WINDOW - 1:
                    slid = mean_and_m2(ring)
                mean, m2 = slid
        standing.put(arm, count, mean, m2)
        if pending := self._open[arm]:
            self._open[arm] = pending - 1

    def explain(self) -> SelectionReason:
        """Why the latest choice was made: scores and propensities of all arms, and a sentence.

        Raises:
            SelectionError: if nothing was chosen yet, or since the state was loaded.
        """
        latest = self._latest
        if latest is None:
            raise SelectionError("there is no choice to explain yet; call choose() first")
        if not isinstance(latest, SelectionReason):
            arm, scores, propensity, count, evidence = latest
            picked = Picked(list(range(self.arms)), arm, scores, propensity, count)
            latest = self._latest = self.strategy.tell(picked, evidence)
        return latest

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt and drawn, as JSON data."""
        standing = self._standing
        state: dict[str, Any] = {
            "strategy": repr(self.strategy),
            "arms": self.arms,
            "seed": self.seed,
            "name": self.name,
        }
        if standing is None:
            return state | {"history": history_data(self._recorded.history)}
        return state | {
            "choices": self._choices,
            "open": list(self._open),
            "outcomes": list(self._outcomes),
            "rings": [list(ring) for ring in self._rings],
            "standing": standing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was asked, choice by choice.

        Raises:
            ConfigError: if the state is of another strategy or number of arms, or is damaged; the
                bandit is as it was.
        """
        if not isinstance(state, Mapping):
            raise ConfigError(f"the state is {state!r}; give what state_dict() gave")
        found = (state.get("strategy"), state.get("arms"))
        if found != (repr(self.strategy), self.arms):
            raise ConfigError(
                f"the state is of {found[0]} over {found[1]} arms, this bandit is {self.strategy!r}"
                f" over {self.arms}; make it as it was made then"
            )
        try:
            other = Bandit(self.strategy, self.arms, seed=state["seed"], name=state["name"])
            other._restore(state)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(f"the state cannot be read ({error!r}); it is damaged") from error
        for slot in Bandit.__slots__:
            setattr(self, slot, getattr(other, slot))

    def _plain(self, arm: object, reward: object) -> tuple[int, float]:
        try:
            if isinstance(reward, str | bytes):
                raise _refusal(arm, self.arms, reward)
            return index(cast(Any, arm)), float(cast(Any, reward))
        except (TypeError, ValueError) as error:
            raise _refusal(arm, self.arms, reward) from error

    def _tell(self, arm: int, reward: float) -> None:
        recorded = self._recorded
        recorded.learn_latest(arm, reward)
        layer = recorded.layer
        if not self.strategy.quick or layer.seeds.standing.tried < self.arms:
            return
        records = list(layer.seeds.values())
        self._choices = layer.choices
        self._open = [record.pending for record in records]
        self._outcomes = [record.outcomes for record in records]
        # The outcome of number n stands in place n modulo the size of the window.
        turns = [record.outcomes % _WINDOW for record in records]
        windows = [record.measured()[0] for record in records]
        self._rings = [
            window[-turn:] + window[:-turn] if len(window) == _WINDOW else window
            for window, turn in zip(windows, turns, strict=True)
        ]
        self._standing = layer.seeds.standing
        self._recorded = Recorded(self.strategy, self.arms, self.name, self.seed)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if "history" in state:
            begun = self._recorded.history
            self._recorded.history = history_from(state["history"], begun.begin)
            return
        self._choices = state["choices"]
        self._open = list(state["open"])
        self._outcomes = list(state["outcomes"])
        self._rings = [list(ring) for ring in state["rings"]]
        self._standing = Standing()
        self._standing.load_state_dict(state["standing"])


@final
class Recorded:
    """A strategy over one layer: what `SeedSelector` and `PerformanceTracker` do to its records.

    Without store, events, reservations and constraints; an outcome may come late, with the decision
    that it is the outcome of.

    Args:
        strategy: Who chooses.
        arms: How many seeds the layer has, >= 1.
        name: Of the layer.
        seed: Of the strategy's own randomness.

    Attributes:
        history: All that is known of the layer.
    """

    def __init__(self, strategy: SelectionStrategy, arms: int, name: str, seed: int) -> None:
        learns = type(strategy).begin is not SelectionStrategy.begin
        self.strategy = strategy
        self.viable = list(range(arms))
        self.history = History(_WINDOW, _DECAY, strategy.begin if learns else None)
        self._name = name
        self._seed = seed

    @property
    def layer(self) -> LayerRecord:
        """The record of the layer."""
        return self.history.layer(self._name)

    def decide(self) -> Decision:
        """Choose a seed; each is tried once first."""
        layer, viable, strategy = self.layer, self.viable, self.strategy
        step, metrics = layer.choices, layer.seeds
        context, rng = SelectionContext(step), Draws(self._seed, layer.name, step)
        first = first_try(strategy, viable, metrics, rng, context)
        arm, reason = first or strategy.decide(viable, metrics, context, rng)
        decision = Decision(
            decision_id=str(step),
            layer_name=layer.name,
            seed_idx=arm,
            blueprint="",
            epoch=step,
            reason=reason,
            random_key=(self._seed, layer.name, step),
        )
        self.history.choose(layer, layer.current(arm), decision.decision_id, step)
        if self.history.begin is not None:
            self.history.open[decision.decision_id] = decision
        return decision

    def learn(self, decision: Decision, reward: float) -> None:
        """Tell what came of a decision; too late if it was one of too many that were open."""
        record = self.layer.current(decision.seed_idx)
        if record.close(decision.decision_id):
            self._learn(record, reward, decision.decision_id)

    def learn_latest(self, arm: int, reward: float) -> None:
        """Tell what an arm earned: of its latest decision that has no outcome, if there is one."""
        record = self.layer.current(arm)
        decision_id = record.open[-1] if record.open else ""
        record.open = record.open[:-1]
        self._learn(record, reward, decision_id)

    def _learn(self, record: SeedRecord, reward: float, decision_id: str) -> None:
        record.add(reward, None, None, window_size=_WINDOW, decay_factor=_DECAY)
        self.history.teach(record, reward, decision_id)


def _refusal(arm: object, arms: int, reward: object) -> SelectionError | MeasurementError:
    try:
        fits = 0 <= index(cast(Any, arm)) < arms
    except TypeError:
        fits = False
    if not fits:
        return SelectionError(f"there is no arm {arm!r}; arms are numbered from 0 to {arms - 1}")
    return MeasurementError(
        f"the reward of arm {arm} is {reward!r}; it must be a finite number (below {LARGEST:g}). "
        "Leave it out if it could not be measured"
    )
