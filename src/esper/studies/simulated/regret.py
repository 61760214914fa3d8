"""What strategies lose by not knowing the best seed, in environments where it is known.

Regret is the pseudo-regret: at every step the mean reward of the best arm less that of the chosen
one, so luck in the rewards does not count. All strategies meet the same problems, reward by reward.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import final

import numpy as np
import numpy.typing as npt

from esper.contracts.errors import ConfigError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionConstraints, SelectionContext
from esper.services.tamiyo.bandit import Bandit
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import SelectionStrategy
from esper.studies.simulated.environments import Environment, Problem

RUNS, STEPS = 20, 1500
"""How much is tried by default; a look, not a verdict."""

FULL_RUNS, FULL_STEPS = 100, 5000
"""How much is tried to hold strategies to their goals."""

_POINTS = 100
"""Points of a path, at most."""

_BLOCK = 10
"""Runs that one process does in one go."""

Numbers = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Contestant:
    """A strategy under the name by which the tables call it."""

    name: str
    strategy: SelectionStrategy


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a study is asked for.

    Attributes:
        contestants: Who is compared; names must differ.
        environments: Where.
        runs: Independent runs of each in each, >= 1.
        steps: Choices in a run, >= 1; at most the environment's horizon.
        seed: Of problems and choices, >= 0: same seed, same figures.

    Raises:
        ConfigError: if a number is out of range or a name stands there twice.
    """

    contestants: tuple[Contestant, ...]
    environments: tuple[Environment, ...]
    runs: int = RUNS
    steps: int = STEPS
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number >= {least}")
        names = [one.name for one in self.contestants]
        if len(set(names)) < len(names):
            raise ConfigError(f"strategies are {', '.join(names)}; each may be given once")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one strategy did in one environment.

    Attributes:
        strategy: Name of the contestant.
        environment: Where.
        steps: Choices in each run.
        at: Steps at which the paths were looked at, (points,).
        paths: Regret so far, (runs, points); the last point is the end.
        earned: Sum of the chosen arms' means, (runs,).
        even: The same for choosing evenly at random, its expectation, (runs,).
    """

    strategy: str
    environment: Environment
    steps: int
    at: npt.NDArray[np.int64]
    paths: Numbers
    earned: Numbers
    even: Numbers

    @property
    def regrets(self) -> Numbers:
        """Regret of every run at its end, (runs,)."""
        return self.paths[:, -1]

    @property
    def mean(self) -> float:
        """Mean regret over runs."""
        return float(self.regrets.mean())

    @property
    def stderr(self) -> float | None:
        """Standard error of `mean`; ``None`` of a single run."""
        runs = len(self.regrets)
        return float(self.regrets.std(ddof=1) / np.sqrt(runs)) if runs > 1 else None

    @property
    def worst(self) -> float:
        """Regret of the worst run."""
        return float(self.regrets.max())

    @property
    def gain(self) -> float:
        """What was earned, relative to choosing evenly at random; all runs added up."""
        return float(self.earned.sum() / self.even.sum())

    @property
    def full(self) -> bool:
        """Whether runs were as long as the environment's goal means them to be."""
        return self.steps == self.environment.horizon

    @property
    def missed(self) -> list[str]:
        """Which parts of the goal were missed; empty where there is none, or runs were cut."""
        goal = self.environment.goal if self.full else None
        if goal is None:
            return []
        missed = [
            name
            for name, found, most in (
                ("mean", self.mean, goal.mean),
                ("worst", self.worst, goal.worst),
            )
            if most is not None and found > most
        ]
        return missed + (["gain"] if goal.gain is not None and self.gain < goal.gain else [])


def study(
    asked: Asked, *, jobs: int = 1, done: Callable[[int, int, Environment], None] | None = None
) -> list[Trial]:
    """Let every contestant choose in every environment.

    Args:
        asked: Who, where, how often and how long.
        jobs: Processes to spread the runs over, >= 1; the figures do not depend on it.
        done: Told how many blocks of runs are done, of how many, and where the latest was.

    Returns:
        One trial for each pair, environment by environment.
    """
    blocks = [
        _Block(contestant, environment, first, min(first + _BLOCK, asked.runs), asked)
        for environment in asked.environments
        for contestant in asked.contestants
        for first in range(0, asked.runs, _BLOCK)
    ]
    played: dict[int, list[_Played]] = {}
    for index, result in _play_all(blocks, jobs):
        played[index] = result
        if done is not None:
            done(len(played), len(blocks), blocks[index].environment)
    per_trial = -(-asked.runs // _BLOCK)
    return [
        _trial(blocks[at], [one for part in range(at, at + per_trial) for one in played[part]])
        for at in range(0, len(blocks), per_trial)
    ]


def play(
    strategy: SelectionStrategy, environment: Environment, problem: Problem, seed: int
) -> list[int]:
    """Let a strategy choose at every step of a problem; returns the arms it chose.

    Every arm is tried once first, as `SeedSelector` has it. Where the environment asks for
    constraints the selector itself is used; elsewhere only what it does to records and strategy,
    without store, events and reservations.

    Args:
        strategy: Who chooses.
        environment: Where the problem is from.
        problem: One of its runs.
        seed: Of the strategy's own randomness.
    """
    if environment.epochs_apart:
        return _through_selector(strategy, environment, problem, seed)
    return _alone(strategy, environment.name, problem, seed)


def _alone(strategy: SelectionStrategy, name: str, problem: Problem, seed: int) -> list[int]:
    bare = Bandit(strategy, problem.rewards.shape[1], seed=seed, name=name)
    delays = problem.delays.tolist()
    waiting: dict[int, list[tuple[Decision, float]]] = {}
    chosen = []
    for step, row in enumerate(problem.rewards.tolist()):
        decision = bare.decide()
        arm = decision.seed_idx
        chosen.append(arm)
        waiting.setdefault(step + delays[step], []).append((decision, row[arm]))
        for due, reward in waiting.pop(step, ()):
            bare.update(due.seed_idx, reward, decision=due)
    return chosen


def _through_selector(
    strategy: SelectionStrategy, environment: Environment, problem: Problem, seed: int
) -> list[int]:
    selector = SeedSelector(strategy, seed=seed, constraints=SelectionConstraints())
    viable = list(range(problem.rewards.shape[1]))
    kinds = problem.kinds or ((),)
    chosen = []
    for step, row in enumerate(problem.rewards.tolist()):
        layer = step % len(kinds)
        name = f"{environment.name}.{layer}"
        context = SelectionContext(
            current_epoch=step * environment.epochs_apart,
            layer_type="Linear",
            blueprints=dict(enumerate(kinds[layer])),
        )
        decision = selector.decide(name, viable, context)
        arm = decision.seed_idx
        delta = PerformanceDelta(reward=row[arm])
        selector.performance_tracker.update_metrics_now(name, arm, delta, decision=decision)
        chosen.append(arm)
    return chosen


@final
@dataclass(frozen=True, slots=True)
class _Block:
    contestant: Contestant
    environment: Environment
    first: int
    end: int
    asked: Asked

    @property
    def steps(self) -> int:
        return min(self.asked.steps, self.environment.horizon)


@final
@dataclass(frozen=True, slots=True)
class _Played:
    path: Numbers
    earned: float
    even: float


def _play_all(blocks: Sequence[_Block], jobs: int) -> Iterator[tuple[int, list[_Played]]]:
    if jobs <= 1:
        for index, block in enumerate(blocks):
            yield index, _play_block(block)
        return
    # Spawned: a fork would copy threads that others may have started.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        begun = {pool.submit(_play_block, block): index for index, block in enumerate(blocks)}
        try:
            for future in as_completed(begun):
                yield begun[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _play_block(block: _Block) -> list[_Played]:
    environment, seed, steps = block.environment, block.asked.seed, block.steps
    found = []
    for run in range(block.first, block.end):
        problem = environment.problem(seed, run, steps)
        chosen = play(block.contestant.strategy, environment, problem, seed * 1_000_003 + run)
        got = problem.means[np.arange(steps), chosen]
        path = np.cumsum(problem.means.max(axis=1) - got)
        even = float(problem.means.mean(axis=1).sum())
        found.append(_Played(path[_looked_at(steps) - 1], float(got.sum()), even))
    return found


def _looked_at(steps: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(1, steps, min(steps, _POINTS)).round().astype(np.int64))


def _trial(block: _Block, played: Sequence[_Played]) -> Trial:
    return Trial(
        strategy=block.contestant.name,
        environment=block.environment,
        steps=block.steps,
        at=_looked_at(block.steps),
        paths=np.stack([one.path for one in played]),
        earned=np.array([one.earned for one in played]),
        even=np.array([one.even for one in played]),
    )
