"""Regret of strategies in environments where the best seed is known.

Regret is the pseudo-regret: at every step the mean reward of the best arm less that of the chosen
one, so luck in the rewards does not count. All strategies get the same problems, reward by reward.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
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
from esper.studies.workers import worker_pool

RUNS, STEPS = 20, 1500
"""Default size of a study; too small to judge a goal."""

FULL_RUNS, FULL_STEPS = 100, 5000
"""Size of a study that judges the goals."""

_POINTS = 100
"""Largest number of points of a path."""

_BLOCK = 10
"""Runs of one job."""

Numbers = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Contestant:
    """Strategy and its name in the tables."""

    name: str
    strategy: SelectionStrategy


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpec:
    """Settings of a study.

    Attributes:
        contestants: Strategies that are compared; names must differ.
        environments: Environments.
        runs: Independent runs of each strategy in each environment, >= 1.
        steps: Choices in a run, >= 1; at most the environment's horizon.
        seed: Seed of problems and choices, >= 0: same seed, same figures.

    Raises:
        ConfigError: if a number is out of range or a name is given twice.
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
    """Result of one strategy in one environment.

    Attributes:
        strategy: Name of the contestant.
        environment: The environment.
        steps: Choices in each run.
        at: Steps of the points of the paths, (points,).
        paths: Regret so far, (runs, points); the last point is the end.
        earned: Sum of the chosen arms' means, (runs,).
        even: Expected sum for choosing evenly at random, (runs,).
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
        """Sum of the rewards of all runs, relative to choosing evenly at random."""
        return float(self.earned.sum() / self.even.sum())

    @property
    def full(self) -> bool:
        """True if runs had the environment's whole horizon."""
        return self.steps == self.environment.horizon

    @property
    def missed(self) -> list[str]:
        """Parts of the goal that were missed; empty without a goal or a full run."""
        goal = self.environment.goal if self.full else None
        if goal is None:
            return []
        missed = {
            "mean": goal.mean is not None and self.mean > goal.mean,
            "worst": goal.worst is not None and self.worst > goal.worst,
            "gain": goal.gain is not None and self.gain < goal.gain,
        }
        return [name for name, is_missed in missed.items() if is_missed]


def study(
    spec: StudySpec, *, jobs: int = 1, done: Callable[[int, int, Environment], None] | None = None
) -> list[Trial]:
    """Run every contestant in every environment.

    Args:
        spec: Settings of the study.
        jobs: Processes to spread the runs over, >= 1; the figures do not depend on it.
        done: Callback with the blocks of runs that are done, all blocks, and the environment.

    Returns:
        One trial for each pair, environment by environment.
    """
    blocks = [
        _Block(contestant, environment, first, min(first + _BLOCK, spec.runs), spec)
        for environment in spec.environments
        for contestant in spec.contestants
        for first in range(0, spec.runs, _BLOCK)
    ]
    played: dict[int, list[_RunResult]] = {}
    for index, result in _results_of(blocks, jobs):
        played[index] = result
        if done is not None:
            done(len(played), len(blocks), blocks[index].environment)
    per_trial = -(-spec.runs // _BLOCK)
    return [
        _trial(blocks[at], [one for part in range(at, at + per_trial) for one in played[part]])
        for at in range(0, len(blocks), per_trial)
    ]


def play(
    strategy: SelectionStrategy, environment: Environment, problem: Problem, seed: int
) -> list[int]:
    """Run a strategy on a problem; if it learns, every arm is tried once first.

    As in training. Where choices are epochs apart, a `SeedSelector` with the default constraints
    chooses, elsewhere a `Bandit`: the same records and strategy without store, events and
    constraints.

    Args:
        strategy: The strategy.
        environment: Environment of the problem.
        problem: One of its runs.
        seed: Seed of the strategy's draws.

    Returns:
        Arms chosen, one for each step.
    """
    if environment.epochs_apart:
        return _with_selector(strategy, environment, problem, seed)
    return _with_bandit(strategy, environment.name, problem, seed)


def _with_bandit(strategy: SelectionStrategy, name: str, problem: Problem, seed: int) -> list[int]:
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


def _with_selector(
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
    spec: StudySpec

    @property
    def steps(self) -> int:
        return min(self.spec.steps, self.environment.horizon)


@final
@dataclass(frozen=True, slots=True)
class _RunResult:
    path: Numbers
    earned: float
    even: float


def _results_of(blocks: Sequence[_Block], jobs: int) -> Iterator[tuple[int, list[_RunResult]]]:
    if jobs <= 1:
        for index, block in enumerate(blocks):
            yield index, _result_of(block)
        return
    with worker_pool(jobs) as pool:
        begun = {pool.submit(_result_of, block): index for index, block in enumerate(blocks)}
        try:
            for future in as_completed(begun):
                yield begun[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _result_of(block: _Block) -> list[_RunResult]:
    environment, seed, steps = block.environment, block.spec.seed, block.steps
    found = []
    for run in range(block.first, block.end):
        problem = environment.problem(seed, run, steps)
        chosen = play(block.contestant.strategy, environment, problem, seed * 1_000_003 + run)
        got = problem.means[np.arange(steps), chosen]
        path = np.cumsum(problem.means.max(axis=1) - got)
        even = float(problem.means.mean(axis=1).sum())
        found.append(_RunResult(path[_points(steps) - 1], float(got.sum()), even))
    return found


def _points(steps: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(1, steps, min(steps, _POINTS)).round().astype(np.int64))


def _trial(block: _Block, played: Sequence[_RunResult]) -> Trial:
    return Trial(
        strategy=block.contestant.name,
        environment=block.environment,
        steps=block.steps,
        at=_points(block.steps),
        paths=np.stack([one.path for one in played]),
        earned=np.array([one.earned for one in played]),
        even=np.array([one.even for one in played]),
    )
