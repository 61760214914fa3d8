"""Where strategies are tried: made-up layers whose best seed is known at every step.

An environment is a course of the arms' mean rewards, the noise on top, and how an outcome comes
back. A to F have goals; the held-out ones are of the same kinds and nothing is tuned on them. The
arms are permuted in every run, so that no strategy gains by the order of its seeds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final
from zlib import crc32

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.studies.simulated.mean_paths import (
    ArmMoves,
    Course,
    Drifting,
    InTurn,
    Irregular,
    Shuffled,
    Still,
    Walking,
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
    """What was asked for in an environment, over its whole horizon and 100 runs.

    Attributes:
        mean: Mean regret, at most; ``None`` where a gain is asked for.
        worst: Regret of the worst run, at most.
        gain: Gain relative to random, at least.
    """

    mean: float | None = None
    worst: float | None = None
    gain: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """One run of an environment: what every arm would earn at every step.

    Attributes:
        means: Mean reward, (steps, arms).
        rewards: Reward with its noise, (steps, arms).
        delays: Steps until the outcome of a choice is told, (steps,); 0 is before the next one.
        kinds: What the arms of each layer are, one row per layer, (layers, arms); arms of one kind
            have something in common across layers. Step ``t`` is layer ``t % layers``'s.
    """

    means: Table
    rewards: Table
    delays: npt.NDArray[np.int64]
    kinds: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment(ABC):
    """Something to choose in, many times over.

    Attributes:
        name: Short name, as on the command line.
        what: One line for a person.
        horizon: Steps in a full run.
        epochs_apart: Epochs from one choice to the next; if not 0, choices go through a
            `SeedSelector` with the default constraints.
        goal: What was asked for, where something was.
        held_out: Whether it was never tuned on.
    """

    name: str
    what: str
    horizon: int = 5000
    epochs_apart: int = 0
    goal: Goal | None = None
    held_out: bool = False

    @abstractmethod
    def problem(self, seed: int, run: int, steps: int) -> Problem:
        """One run; the same for every strategy.

        Args:
            seed: Of the study, >= 0.
            run: Number of the run, >= 0.
            steps: How many, >= 1.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OneLayer(Environment):
    """The arms of one layer.

    Attributes:
        course: The mean rewards.
        noise: What is drawn around them.
        delay: Least and most steps until an outcome is told, drawn evenly; 0, 0 is at once.
    """

    course: Course
    noise: Noise
    delay: tuple[int, int] = (0, 0)

    @override
    def problem(self, seed: int, run: int, steps: int) -> Problem:
        generator = _generator(seed, run, self.name)
        means = self.course.means(generator, run, steps)
        rewards = self.noise.draw(generator, means)
        low, high = self.delay
        return Problem(means, rewards, generator.integers(low, high + 1, steps))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedKinds(Environment):
    """Layers whose arms are of the same kinds: what one layer learns helps the next.

    A kind is worth between `least` and `most`, whatever the layer; the layer multiplies that by a
    lognormal factor. Every layer has the kinds in an order of its own.

    Attributes:
        spread: How the kinds' worths are drawn: ``"loguniform"``, ``"uniform"``, ``"exponential"``.
        layers: How many.
        kinds: How many, and arms in each layer.
        least: Smallest gain.
        most: Largest gain.
        scatter: Standard deviation of the logarithm of a layer's factor.
        sds: Range of the noise's standard deviation; drawn once a run.
    """

    spread: str = "loguniform"
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
    OneLayer(
        name="A",
        what="Bernoulli, means .05, .1, .2 ... .9",
        course=Still((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        noise=Bernoulli(),
        goal=Goal(mean=35, worst=90),
    ),
    OneLayer(
        name="B",
        what="Gaussian, 8 even means from 0 to 0.03, sd 0.02",
        course=Still(_EVEN),
        noise=_SD,
        goal=Goal(mean=1.5, worst=4),
    ),
    OneLayer(
        name="C",
        what="as B, permuted every 500 steps so that the best arm moves",
        course=Shuffled(_EVEN, 500),
        noise=_SD,
        goal=Goal(mean=15),
    ),
    OneLayer(
        name="D",
        what="as C, Bernoulli, means .1, .15 ... .5 and .8",
        course=Shuffled(_RATES, 500),
        noise=Bernoulli(),
        goal=Goal(mean=290),
    ),
    OneLayer(
        name="E",
        what="4 arms, 500 choices 6 epochs apart, within the default constraints",
        course=InTurn((0.020, 0.0, 0.010, 0.005)),
        noise=_SD,
        horizon=500,
        epochs_apart=6,
        goal=Goal(mean=0.8),
    ),
    SharedKinds(
        name="F",
        what=_SHARED.format("loguniform"),
        horizon=30,
        epochs_apart=6,
        goal=Goal(gain=2.0),
    ),
    SharedKinds(
        name="F-uniform",
        what=_SHARED.format("uniform"),
        horizon=30,
        epochs_apart=6,
        spread="uniform",
        held_out=True,
    ),
    SharedKinds(
        name="F-exponential",
        what=_SHARED.format("exponential"),
        horizon=30,
        epochs_apart=6,
        spread="exponential",
        held_out=True,
    ),
    OneLayer(
        name="H1",
        what="2 arms, Bernoulli .48 and .55",
        course=Still((0.48, 0.55)),
        noise=Bernoulli(),
        held_out=True,
    ),
    OneLayer(
        name="H2",
        what="16 arms, Gaussian, half a standard deviation apart",
        course=Still((0.0,) * 8 + (0.01,) * 7 + (0.02,)),
        noise=_SD,
        held_out=True,
    ),
    OneLayer(
        name="H3",
        what="5 arms, Student-t noise with 4 degrees of freedom",
        course=Still((0.0, 0.01, 0.02, 0.03, 0.04)),
        noise=StudentT(0.04, 4),
        held_out=True,
    ),
    OneLayer(
        name="H4",
        what="6 arms, skewed (exponential) noise",
        course=Still((0.0, 0.5, 1.0, 1.5, 2.0, 3.0)),
        noise=Skewed(2.0),
        held_out=True,
    ),
    OneLayer(
        name="H5",
        what="the worst arm becomes the best after a third; nothing else moves",
        course=ArmMoves(_SIX, rank=0, to=0.045, after=1 / 3),
        noise=_SD,
        held_out=True,
    ),
    OneLayer(
        name="H6",
        what="the best arm becomes the worst half-way; nothing else moves",
        course=ArmMoves(_SIX, rank=-1, to=0.0, after=1 / 2),
        noise=_SD,
        held_out=True,
    ),
    OneLayer(
        name="H7",
        what="6 arms on slow sinusoids",
        course=Drifting(6, level=0.015, swing=0.015, periods=(2000, 5000)),
        noise=_SD,
        held_out=True,
    ),
    OneLayer(
        name="H8",
        what="5 arms on random walks",
        course=Walking(5, start_sd=0.015, step_sd=0.0004),
        noise=_SD,
        held_out=True,
    ),
    OneLayer(
        name="H9",
        what="as B, outcomes 10 to 50 steps late",
        course=Still(_EVEN),
        noise=_SD,
        delay=(10, 50),
        held_out=True,
    ),
    OneLayer(
        name="H10",
        what="as D, outcomes 10 to 50 steps late",
        course=Shuffled(_RATES, 500),
        noise=Bernoulli(),
        delay=(10, 50),
        held_out=True,
    ),
    OneLayer(
        name="H11",
        what="6 arms, nine in ten rewards are 0, the rest exponential",
        course=Still((0.2, 0.4, 0.6, 0.8, 1.0, 1.5)),
        noise=Sparse(0.1),
        held_out=True,
    ),
    OneLayer(
        name="H12",
        what="4 arms, permuted at irregular times, about every 850 steps",
        course=Irregular((0.0, 0.01, 0.02, 0.05), least=50, more=800),
        noise=Gaussian(0.03),
        held_out=True,
    ),
    OneLayer(
        name="H13",
        what="6 arms, rare successes: Bernoulli .01 to .05",
        course=Still((0.01, 0.01, 0.02, 0.02, 0.03, 0.05)),
        noise=Bernoulli(),
        held_out=True,
    ),
    OneLayer(
        name="H14",
        what="as B, hardly any noise, sd 0.0005",
        course=Still(_EVEN),
        noise=Gaussian(0.0005),
        held_out=True,
    ),
    OneLayer(
        name="H15",
        what="4 arms, much noise, sd 0.1",
        course=Still((0.0, 0.01, 0.02, 0.03)),
        noise=Gaussian(0.1),
        held_out=True,
    ),
)

ENVIRONMENTS: Mapping[str, Environment] = {one.name: one for one in _TABLE}
"""Every environment by its name, those with a goal first."""


def environments(names: Sequence[str]) -> list[Environment]:
    """The environments that are asked for, each once, in the order of the table.

    Args:
        names: Their names in any case; ``held-out`` and ``all`` stand for many. None at all: those
            with a goal.

    Raises:
        ConfigError: if there is no such environment; the message suggests the nearest.
    """
    known = {name.lower(): name for name in ENVIRONMENTS}
    wanted = set()
    for name in names or ["goals"]:
        if name.lower() in _GROUPS:
            group = name.lower()
            wanted |= {one.name for one in _TABLE if group == "all" or _group(one) == group}
        elif name.lower() in known:
            wanted.add(known[name.lower()])
        else:
            raise ConfigError(unknown_name("environment", name, [*ENVIRONMENTS, *_GROUPS]))
    return [one for one in _TABLE if one.name in wanted]


_GROUPS = ("goals", "held-out", "all")


def _group(environment: Environment) -> str:
    return "held-out" if environment.held_out else "goals"
