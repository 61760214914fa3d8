"""Bandit: choose an arm, report its reward; the selector's engine for one layer, without the rest.

Same strategies, records and random numbers as `SeedSelector` for a layer of as many seeds; no
store, constraints or reservations.
"""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, cast, final

from esper.contracts.config import Performance
from esper.contracts.errors import ConfigError, MeasurementError, SelectionError
from esper.contracts.names import require_name
from esper.contracts.performance import LARGEST
from esper.contracts.schema import require_schema
from esper.contracts.selection import (
    MOST_SEEDS,
    Decision,
    SelectionContext,
    SelectionReason,
    checked_seeds,
    whole,
)
from esper.drawing.html_tables import seeds_table
from esper.records.draws import Draws
from esper.records.history import History
from esper.records.layer import LayerRecord
from esper.records.seed import SeedRecord
from esper.records.state import history_data, history_from
from esper.strategies import STRATEGIES
from esper.strategies.base import SelectionStrategy
from esper.strategies.first_try import first_try

SCHEMA = 1
"""Version of the state."""

_WINDOW = Performance().window_size
_DECAY = Performance().decay_factor


@final
class Bandit:
    """Chooses among arms by any strategy, and learns from their rewards.

    Every arm is tried once first, if the strategy learns. Rewards are remembered as a
    `PerformanceTracker` does by default: the last 20 of each arm. Not safe to use from several
    threads at once.

    Args:
        strategy: Who decides; a name stands for the strategy with its defaults.
        arms: How many arms there are, from 1 to 1,048,576.
        seed: Seed of all randomness.
        name: Part of the key of the random numbers; bandits of different names draw independently.

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

    __slots__ = ("_history", "_latest", "_layer", "_viable", "arms", "name", "seed", "strategy")

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
        arms, seed = whole("arms", arms, least=1, below=MOST_SEEDS + 1), whole("seed", seed)
        require_name("name", name)
        self.strategy = strategy
        self.arms = arms
        self.seed = seed
        self.name = name
        self._viable = list(range(arms))
        self._latest: SelectionReason | None = None
        learns = type(strategy).begin is not SelectionStrategy.begin
        self._take(History(_WINDOW, _DECAY, strategy.begin if learns else None))

    def choose(
        self, viable: Sequence[int] | None = None, context: SelectionContext | None = None
    ) -> int:
        """The arm to pull next.

        Args:
            viable: Arms to choose from, each once, in any order; ``None``: all.
            context: What a contextual strategy reads; by default only the number of the choice.

        Raises:
            SelectionError: if ``viable`` is empty, repeats an arm or names one that is none, or
                ``context`` is no `SelectionContext` or has a blueprint of an arm that is none.
        """
        return self.decide(viable, context).seed_idx

    def decide(
        self, viable: Sequence[int] | None = None, context: SelectionContext | None = None
    ) -> Decision:
        """`choose`, and the record of the choice, for an outcome that comes late."""
        layer, strategy = self._layer, self.strategy
        seeds = self._viable if viable is None else self._checked(viable)
        number, metrics = layer.choices, layer.seeds
        if context is None:
            context = SelectionContext(number)
        elif not isinstance(context, SelectionContext):
            raise SelectionError(
                f"the context is {context!r}; give a SelectionContext, as "
                "SelectionContext(current_epoch=7)"
            )
        for arm, blueprint in context.blueprints.items():
            if arm >= self.arms:
                raise _refusal(arm, self.arms, 0.0)
            layer.bind(arm, blueprint)
        rng = Draws(self.seed, self.name, number)
        first = first_try(strategy, seeds, metrics, rng, context)
        arm, reason = first or strategy.decide(seeds, metrics, context, rng)
        record = layer.current(arm)
        decision = Decision(
            decision_id=str(number),
            layer_name=self.name,
            seed_idx=arm,
            blueprint=record.blueprint,
            epoch=context.current_epoch,
            reason=reason,
            random_key=(self.seed, self.name, number),
            layer_type=context.layer_type,
            depth=context.health.depth if context.health else None,
            promise=context.promise_of(arm),
        )
        self._history.choose(layer, record, decision.decision_id, decision.epoch)
        if self._history.begin is not None:
            self._history.open[decision.decision_id] = decision
        self._latest = reason
        return decision

    def update(self, arm: int, reward: float, *, decision: Decision | None = None) -> None:
        """Report the reward of an arm; it need not be the latest that was chosen.

        Args:
            arm: The arm.
            reward: Larger is better; finite.
            decision: The choice that this is the outcome of, however late; a second outcome of one
                decision is not counted. Without it, the outcome answers the arm's latest open
                choice, if there is one.

        Raises:
            SelectionError: if there is no such arm, or the decision was not made here.
            MeasurementError: if the reward is NaN, infinite or no number.
        """
        if type(arm) is not int or type(reward) is not float:
            arm, reward = self._plain(arm, reward)
        if not (0 <= arm < self.arms and -LARGEST < reward < LARGEST):
            raise _refusal(arm, self.arms, reward)
        if decision is None:
            record = self._layer.current(arm)
            decision_id = record.answer()
        else:
            record, decision_id = self._answered(arm, decision)
            if not record.close(decision_id):
                return
        record.add(reward, None, None, window_size=_WINDOW, decay_factor=_DECAY)
        self._history.teach(record, reward, decision_id)

    def explain(self) -> SelectionReason:
        """Why the latest choice was made: scores and propensities of all arms, and a sentence.

        Raises:
            SelectionError: if nothing was chosen yet, or since the state was loaded.
        """
        if self._latest is None:
            raise SelectionError("there is no choice to explain yet; call choose() first")
        return self._latest

    def _repr_html_(self) -> str:
        latest = self._latest.propensities if self._latest is not None else {}
        title = f"Bandit {self.name!r}: {self.strategy.name}, {self._layer.choices:,} choices"
        return seeds_table(
            title,
            [self._layer],
            "propensity of the latest choice",
            lambda record: f"{latest[record.seed_idx]:.3f}" if record.seed_idx in latest else "-",
            arms=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt and drawn, as JSON data."""
        return {
            "schema": SCHEMA,
            "strategy": repr(self.strategy),
            "arms": self.arms,
            "seed": self.seed,
            "name": self.name,
            "history": history_data(self._history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was asked, choice by choice.

        Raises:
            ConfigError: if the state is of another strategy or number of arms, or is damaged; the
                bandit is as it was.
        """
        require_schema(state, "bandit", SCHEMA)
        found = (state.get("strategy"), state.get("arms"))
        if found != (repr(self.strategy), self.arms):
            raise ConfigError(
                f"the state is of {found[0]} over {found[1]} arms, this bandit is {self.strategy!r}"
                f" over {self.arms}; make it as it was made then"
            )
        try:
            other = Bandit(self.strategy, self.arms, seed=state["seed"], name=state["name"])
            history = history_from(state["history"], self._history)
        except KeyError as error:
            raise ConfigError(f"the state cannot be read ({error!r}); it is damaged") from error
        self.seed, self.name, self._latest = other.seed, other.name, None
        self._take(history)

    def _take(self, history: History) -> None:
        self._history = history
        self._layer: LayerRecord = history.layer(self.name)

    def _checked(self, viable: Sequence[int]) -> list[int]:
        try:
            arms = list(checked_seeds(self.name, viable))
        except SelectionError:
            arms = []
        if not arms or arms[-1] >= self.arms:
            raise SelectionError(
                f"viable is {viable!r}; give a list of arms, at least one, each once: arms are "
                f"numbered from 0 to {self.arms - 1}"
            )
        return arms

    def _answered(self, arm: int, decision: Decision) -> tuple[SeedRecord, str]:
        if not isinstance(decision, Decision):
            raise SelectionError(
                f"decision is {decision!r}; hand the Decision back that decide() gave, not its id"
            )
        number = decision.decision_id
        mine = decision.layer_name == self.name and number.isdecimal()
        if not mine or int(number) >= self._layer.choices:
            raise SelectionError(
                f"decision {decision.decision_id!r} of {decision.layer_name!r} was never made by "
                f"this bandit, {self.name!r}; hand each outcome back to the bandit that chose"
            )
        if decision.seed_idx != arm:
            raise SelectionError(
                f"decision {decision.decision_id!r} chose arm {decision.seed_idx}, but the outcome "
                f"is for arm {arm}; hand each outcome back with its own decision"
            )
        return self._layer.under(arm, decision.blueprint), decision.decision_id

    def _plain(self, arm: object, reward: object) -> tuple[int, float]:
        try:
            if isinstance(reward, str | bytes):
                raise _refusal(arm, self.arms, reward)
            return index(cast(Any, arm)), float(cast(Any, reward))
        except (TypeError, ValueError, OverflowError) as error:
            raise _refusal(arm, self.arms, reward) from error


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
