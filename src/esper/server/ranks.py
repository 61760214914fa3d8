"""Ranks: choices among named actions, in the calls that users of hosted bandit services know.

`rank` answers with the action to take and a probability for each; `reward` tells what it earned.
An event whose reward does not come in time earns a default, unless it was never activated. In
apprentice mode the caller's own choice, the first action, is answered and learnt from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from esper.contracts.errors import ConfigError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionContext
from esper.server.chooser import Chooser
from esper.server.waiting import Waiting, nothing_waits

LAYER: Final = "actions"
"""Layer of the history under which actions are learnt; an action is a blueprint."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Ways of a service to choose.

    Attributes:
        strategy: Name of the strategy.
        apprentice: Answer the caller's first action, and learn from what it earns.
        wait_s: Time after which an event without a reward earns the default, in seconds.
        default: Reward of such an event.
    """

    strategy: str = "auto"
    apprentice: bool = False
    wait_s: float = 600.0
    default: float = 0.0


@final
@dataclass(frozen=True, slots=True)
class Ranked:
    """An event and its answer.

    Attributes:
        event: Id of the event.
        decision: The choice, which is stored; the event's reward is its outcome.
        action: Action to take.
        chances: Probability of each action.
        version: Number of outcomes that the strategy had learnt from.
    """

    event: str
    decision: Decision
    action: str
    chances: Mapping[str, float]
    version: int


@final
class Ranks:
    """Events of one scope. Safe to use from several threads.

    Args:
        chooser: Of the scope.
        settings: How events end, and whether the caller's choice is answered.
    """

    def __init__(self, chooser: Chooser, settings: Settings) -> None:
        self._chooser, self._settings = chooser, settings
        self._waiting = Waiting(chooser, settings.wait_s)
        self._seeds: dict[str, int] = {}

    def rank(
        self, actions: Sequence[str], event: str, *, excluded: Sequence[str], deferred: bool
    ) -> Ranked:
        """Choose an action.

        Args:
            actions: Names, the caller's own choice first.
            event: Id for the event; drawn if empty.
            excluded: Actions that may not be chosen.
            deferred: The event counts only once it is activated.

        Raises:
            ConfigError: if an action is named twice, none is left, an excluded one is not there,
                or the id cannot be in a path.
            SelectionError: if there is an event of this id.
            StoreError: if the choice cannot be stored now.
        """
        self.settle()
        unknown = [name for name in excluded if name not in set(actions)]
        if unknown:
            raise ConfigError(f"excluded: {unknown[0]!r} is none of the actions; leave it out")
        free = [name for name in actions if name not in set(excluded)]
        if not free or len(set(actions)) < len(actions):
            raise ConfigError("actions: give at least one that is not excluded, each of them once")
        if {".", ".."} & set(event.split("/")):
            raise ConfigError(f"event {event!r} cannot stand in the path of its reward; rename it")
        if event:
            self._waiting.hold(event)
        try:
            return self._ranked(actions, free, event, deferred=deferred)
        except BaseException:
            self._waiting.drop(event)
            raise

    def activate(self, event: str) -> None:
        """Note that the action of a deferred event was taken; its time begins now.

        Raises:
            SelectionError: if there is no such event.
            StoreError: if that cannot be stored now.
        """
        self.settle()
        self._waiting.activate(event)
        self._chooser.settle()

    def reward(self, event: str, value: float) -> None:
        """Record the reward of an event; only the first counts, and activates it.

        Raises:
            MeasurementError: if the value is not finite.
            SelectionError: if there is no such event, or its time is over.
            StoreError: if it cannot be stored now.
        """
        self.settle()
        awaited = self._waiting.take(event)
        try:
            counted = self._chooser.tell(awaited.decision, PerformanceDelta(reward=value))
        except BaseException:
            self._waiting.give_back(event, awaited)
            raise
        self._chooser.settle()
        if not counted:  # another service was told
            raise nothing_waits(event)

    def settle(self) -> None:
        """End the events whose time is over: the default reward, or nothing if never activated.

        Raises:
            StoreError: if the store cannot be read.
        """
        for awaited in self._waiting.take_late():
            if awaited.active:
                delta = PerformanceDelta(reward=self._settings.default)
                self._chooser.tell(awaited.decision, delta)
            else:
                self._chooser.give_up(awaited.decision)

    def _ranked(
        self, actions: Sequence[str], free: Sequence[str], event: str, *, deferred: bool
    ) -> Ranked:
        seeds = {self._seed_of(name): name for name in free}
        context = SelectionContext(blueprints=seeds)
        own = next(iter(seeds)) if self._settings.apprentice else None
        decision, version = self._chooser.choose_among(LAYER, list(seeds), context, own)
        event = event or decision.decision_id
        try:
            self._waiting.add(event, decision.decision_id, active=not deferred)
            self._chooser.settle()
        except BaseException:
            self._waiting.drop(event)
            self._chooser.give_up(decision.decision_id)
            raise
        chances = _chances(decision, seeds, actions)
        return Ranked(event, decision, seeds[decision.seed_idx], chances, version)

    def _seed_of(self, action: str) -> int:
        """Seed that stands for an action, the same after a restart: the history knows it."""
        with self._chooser.tracker.lock:
            if not self._seeds and (layer := self._chooser.tracker.layer(LAYER)):
                self._seeds = {one.blueprint: seed for seed, one in layer.seeds.items()}
            return self._seeds.setdefault(action, max(self._seeds.values(), default=-1) + 1)


def _chances(
    decision: Decision, seeds: Mapping[int, str], actions: Sequence[str]
) -> dict[str, float]:
    """Probability of each action; 0 for those that were excluded."""
    reason = decision.reason
    chances = dict.fromkeys(actions, 0.0)
    chances |= {name: reason.propensities.get(seed, 0.0) for seed, name in seeds.items()}
    return chances | {seeds[decision.seed_idx]: reason.propensity}
