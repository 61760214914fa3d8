"""Simulated environments: layers whose best seed is known at every step.

An environment has a path of mean rewards, a noise, and a delay of outcomes. A to G have goals; the
held-out ones are of the same kinds and nothing is tuned on them. Arms are permuted in every run, so
that no strategy gains by the order of its seeds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final
from zlib import crc32

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.studies.simulated.mean_paths import (
    Constant,
    Fading,
    InTurn,
    MeanPath,
    OneArmChanges,
    Permuted,
    PermutedIrregularly,
    RandomWalk,
    Sinusoidal,
)
from esper.studies.simulated.reward_noise import (
    Bernoulli,
    Gaussian,
    Noise,
    Skewed,
    Sparse,
    StudentT,
)

Table = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Goal of an environment, over its whole horizon and 100 runs.

    Attributes:
        mean: Mean regret, at most; ``None`` where the goal is a gain.
        worst: Regret of the worst run, at most.
        gain: Gain relative to random, at least.
    """

    mean: float | None = None
    worst: float | None = None
    gain: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """Means and rewards of every arm at every step of one run.

    Attributes:
        means: Mean reward, (steps, arms).
        rewards: Reward with its noise, (steps, arms).
        delays: Steps until the outcome of a choice comes, (steps,); 0 is before the next choice.
        kinds: Kind of each arm, one row per layer, (layers, arms); arms of one kind are worth about
            the same in all layers. Step ``t`` is layer ``t % layers``'s.
    """

    means: Table
    rewards: Table
    delays: npt.NDArray[np.int64]
    kinds: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Environment(ABC):
    """Distribution of problems.

    Attributes:
        name: Short name, as on the command line.
        what: Description in one line.
        horizon: Steps in a full run.
        epochs_apart: Epochs from one choice to the next; if not 0, choices go through a
            `SeedSelector` with the default constraints.
        goal: The goal; ``None`` of an environment that is held out.
    """

    name: str
    what: str
    _: KW_ONLY
    horizon: int = 5000
    epochs_apart: int = 0
    goal: Goal | None = None

    @property
    def held_out(self) -> bool:
        """True if nothing was tuned on it."""
        return self.goal is None

    @abstractmethod
    def problem(self, seed: int, run: int, steps: int) -> Problem:
        """Draw one run; it is the same for every strategy.

        Args:
            seed: Seed of the study, >= 0.
            run: Number of the run, >= 0.
            steps: Number of steps, >= 1.
        """


@final
@dataclass(frozen=True, slots=True)
class OneLayer(Environment):
    """Arms of one layer.

    Attributes:
        path: Mean rewards.
        noise: Distribution of rewards around them.
        delay: Least and most steps until an outcome comes, drawn evenly; 0, 0 is at once.
        fading: Factor on all rewards, noise included, of each step; ``None`` for 1.
    """

    path: MeanPath
    noise: Noise
    _: KW_ONLY
    delay: tuple[int, int] = (0, 0)
    fading: Fading | None = None

    @override
    def problem(self, seed: int, run: int, steps: int) -> Problem:
        generator = _generator(seed, run, self.name)
        means = self.path.means(generator, run, steps)
        rewards = self.noise.draw(generator, means)
        if self.fading is not None:
            factors = self.fading.factors(steps)[:, None]
            means, rewards = means * factors, rewards * factors
        low, high = self.delay
        return Problem(means, rewards, generator.integers(low, high + 1, steps))


@final
@dataclass(frozen=True, slots=True)
class SharedKinds(Environment):
    """Layers whose arms are of the same kinds, so that outcomes of one layer help in the next.

    A kind is worth between `least` and `most`, times a lognormal factor of the layer. Every layer
    has the kinds in another order.

    Attributes:
        spread: Distribution of the worths: ``"loguniform"``, ``"uniform"`` or ``"exponential"``.
        layers: Number of layers.
        kinds: Number of kinds, and of arms in each layer.
        least: Smallest worth.
        most: Largest worth.
        scatter: Standard deviation of the logarithm of a layer's factor.
        sds: Range of the noise's standard deviation, which is drawn once a run.
    """

    spread: str
    _: KW_ONLY
    horizon: int = 30
    epochs_apart: int = 6
    layers: int = 6
    kinds: int = 5
    least: float = 0.001
    most: float = 0.18
    scatter: float = 0.25
    sds: tuple[float, float] = (0.02, 0.05)

    @override
    def problem(self, seed: int, run: int, steps: int) -> Problem:
        generator = _generator(seed, run, self.name)
        factors = np.exp(self.scatter * generator.standard_normal((self.layers, self.kinds)))
        worth = np.clip(self._worths(generator) * factors, self.least, self.most)
        order = generator.permuted(np.tile(np.arange(self.kinds), (self.layers, 1)), axis=1)
        by_layer = np.take_along_axis(worth, order, axis=1)
        means = by_layer[np.arange(steps) % self.layers]
        rewards = Gaussian(generator.uniform(*self.sds)).draw(generator, means)
        named = tuple([tuple([f"kind{kind}" for kind in row]) for row in order.tolist()])
        return Problem(means, rewards, np.zeros(steps, np.int64), named)

    def _worths(self, generator: np.random.Generator) -> Table:
        if self.spread == "loguniform":
            return np.exp(generator.uniform(np.log(self.least), np.log(self.most), self.kinds))
        if self.spread == "uniform":
            return generator.uniform(self.least, self.most, self.kinds)
        return np.clip(generator.exponential(self.most / 4, self.kinds), self.least, self.most)


def _generator(seed: int, run: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, run, crc32(name.encode())])


_EVEN = tuple([0.03 * arm / 7 for arm in range(8)])
_RATES = (0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.80)
_SIX = tuple([0.03 * arm / 5 for arm in range(6)])
_SD = Gaussian(0.02)
_SHARED = "6 layers x 5 arms of shared kinds, {} worths 0.001 to 0.18, 30 choices in all"

_TABLE: tuple[Environment, ...] = (
    OneLayer("A", "Bernoulli, means .05, .1, .2 ... .9",
             Constant((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)), Bernoulli(),
             goal=Goal(mean=35, worst=90)),
    OneLayer("B", "Gaussian, 8 even means from 0 to 0.03, sd 0.02",
             Constant(_EVEN), _SD, goal=Goal(mean=1.5, worst=4)),
    OneLayer("C", "as B, permuted every 500 steps so that the best arm moves",
             Permuted(_EVEN, 500), _SD, goal=Goal(mean=15)),
    OneLayer("D", "as C, Bernoulli, means .1, .15 ... .5 and .8",
             Permuted(_RATES, 500), Bernoulli(), goal=Goal(mean=290)),
    OneLayer("E", "4 arms, 500 choices 6 epochs apart, within the default constraints",
             InTurn((0.020, 0.0, 0.010, 0.005)), _SD, horizon=500, epochs_apart=6,
             goal=Goal(mean=0.8)),
    SharedKinds("F", _SHARED.format("loguniform"), "loguniform", goal=Goal(gain=2.0)),
    OneLayer("G1", "as B, all rewards shrink to 0.7 every 500 steps",
             Constant(_EVEN), _SD, fading=Fading(0.7, every=500), goal=Goal(mean=2.2)),
    OneLayer("G2", "as B, all rewards shrink evenly, to a tenth in the end",
             Constant(_EVEN), _SD, fading=Fading(0.1, every=5000, smooth=True),
             goal=Goal(mean=2.6)),
    SharedKinds("F-uniform", _SHARED.format("uniform"), "uniform"),
    SharedKinds("F-exponential", _SHARED.format("exponential"), "exponential"),
    OneLayer("H1", "2 arms, Bernoulli .48 and .55", Constant((0.48, 0.55)), Bernoulli()),
    OneLayer("H2", "16 arms, Gaussian, half a standard deviation apart",
             Constant((0.0,) * 8 + (0.01,) * 7 + (0.02,)), _SD),
    OneLayer("H3", "5 arms, Student-t noise with 4 degrees of freedom",
             Constant((0.0, 0.01, 0.02, 0.03, 0.04)), StudentT(0.04, 4)),
    OneLayer("H4", "6 arms, skewed (exponential) noise",
             Constant((0.0, 0.5, 1.0, 1.5, 2.0, 3.0)), Skewed(2.0)),
    OneLayer("H5", "the worst arm becomes the best after a third; nothing else moves",
             OneArmChanges(_SIX, rank=0, to=0.045, after=1 / 3), _SD),
    OneLayer("H6", "the best arm becomes the worst half-way; nothing else moves",
             OneArmChanges(_SIX, rank=-1, to=0.0, after=1 / 2), _SD),
    OneLayer("H7", "6 arms on slow sinusoids",
             Sinusoidal(6, level=0.015, swing=0.015, periods=(2000, 5000)), _SD),
    OneLayer("H8", "5 arms on random walks",
             RandomWalk(5, start_sd=0.015, step_sd=0.0004), _SD),
    OneLayer("H9", "as B, outcomes 10 to 50 steps late", Constant(_EVEN), _SD, delay=(10, 50)),
    OneLayer("H10", "as D, outcomes 10 to 50 steps late",
             Permuted(_RATES, 500), Bernoulli(), delay=(10, 50)),
    OneLayer("H11", "6 arms, nine in ten rewards are 0, the rest exponential",
             Constant((0.2, 0.4, 0.6, 0.8, 1.0, 1.5)), Sparse(0.1)),
    OneLayer("H12", "4 arms, permuted at irregular times, about every 850 steps",
             PermutedIrregularly((0.0, 0.01, 0.02, 0.05), least=50, more=800), Gaussian(0.03)),
    OneLayer("H13", "6 arms, rare successes: Bernoulli .01 to .05",
             Constant((0.01, 0.01, 0.02, 0.02, 0.03, 0.05)), Bernoulli()),
    OneLayer("H14", "as B, hardly any noise, sd 0.0005", Constant(_EVEN), Gaussian(0.0005)),
    OneLayer("H15", "4 arms, much noise, sd 0.1",
             Constant((0.0, 0.01, 0.02, 0.03)), Gaussian(0.1)),
)  # fmt: skip

ENVIRONMENTS: Mapping[str, Environment] = {one.name: one for one in _TABLE}
"""Environments by name, those with a goal first."""


_GROUPS: Mapping[str, Sequence[Environment]] = {
    "goals": [one for one in _TABLE if not one.held_out],
    "held-out": [one for one in _TABLE if one.held_out],
    "all": _TABLE,
}


def environments(names: Sequence[str]) -> list[Environment]:
    """Look up environments by name, each once, in the order of the table.

    Args:
        names: Names in any case; ``goals``, ``held-out`` and ``all`` stand for many. If empty,
            those with a goal.

    Raises:
        ConfigError: if there is no such environment; the message suggests the nearest.
    """
    known = {name.lower(): [one] for name, one in ENVIRONMENTS.items()} | dict(_GROUPS)
    wanted = set()
    for name in names or ["goals"]:
        if name.lower() not in known:
            raise ConfigError(unknown_name("environment", name, [*ENVIRONMENTS, *_GROUPS]))
        wanted |= {one.name for one in known[name.lower()]}
    return [one for one in _TABLE if one.name in wanted]
