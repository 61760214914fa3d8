"""Bandit libraries from PyPI behind one interface: choose an arm, learn its reward.

Everything is left at its default; where a library has none (the delta of river's UCB), the value is
that of its own documentation. Arms are 0 to K - 1. A library is imported when a player is begun.
"""

# ruff: noqa: PLC0415 (each library is optional)

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np


class Player(Protocol):
    """A bandit in the middle of its run."""

    def choose(self) -> tuple[int, Any]:
        """An arm, and what `learn` must be given back with its outcome."""

    def learn(self, arm: int, reward: float, ticket: Any) -> None:
        """Take in the outcome of a choice."""


@dataclass(frozen=True)
class Peer:
    """One policy of one library.

    Attributes:
        name: What the table calls it.
        begin: Makes a player from the number of arms and a seed.
        binary: Whether it takes rewards of 0 and 1 only.
    """

    name: str
    begin: Callable[[int, int], Player]
    binary: bool = False


class Pymab:
    def __init__(self, policy: str, arms: int, seed: int, **settings: Any) -> None:
        import pymab.policies

        self.policy = getattr(pymab.policies, policy)(n_arms=arms, **settings)
        self.rng = np.random.default_rng(seed)

    def choose(self) -> tuple[int, None]:
        return self.policy.select_action(rng=self.rng), None

    def learn(self, arm: int, reward: float, ticket: None) -> None:
        self.policy.update(action=arm, reward=reward)


class BayesianBandits:
    def __init__(self, policy: str, arms: int, seed: int) -> None:
        import bayesianbandits as library

        made = [
            library.Arm(arm, learner=library.NormalInverseGammaRegressor()) for arm in range(arms)
        ]
        self.agent = library.Agent(made, getattr(library, policy)(), random_seed=seed)

    def choose(self) -> tuple[int, None]:
        return self.agent.pull()[0], None

    def learn(self, arm: int, reward: float, ticket: None) -> None:
        self.agent.select_for_update(arm).update(np.array([reward]))


class Gittins:
    def __init__(self, arms: int, seed: int) -> None:
        import gittins

        self.library = gittins
        self.state = gittins.create(bits=8, horizon=1e9)
        self.candidates = [(str(arm), {}) for arm in range(arms)]
        self.salt, self.clock = f"run{seed}", 0.0

    def choose(self) -> tuple[int, Any]:
        self.clock += 1.0
        record = self.library.decide(self.state, {}, self.candidates, self.clock, self.salt)
        return record.chosen, record.decision_id

    def learn(self, arm: int, reward: float, ticket: Any) -> None:
        self.library.learn(self.state, ticket, reward, self.clock)


class River:
    def __init__(self, begin: Callable[[int], Any], arms: int, seed: int) -> None:
        self.policy, self.arms = begin(seed), list(range(arms))

    def choose(self) -> tuple[int, None]:
        return self.policy.pull(self.arms), None

    def learn(self, arm: int, reward: float, ticket: None) -> None:
        self.policy.update(arm, reward)


class MabWiser:
    """It cannot choose before it was fitted; every arm is tried once first."""

    def __init__(self, policy: str, arms: int, seed: int) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        self.mab = MAB(list(range(arms)), getattr(LearningPolicy, policy)(), seed=seed)
        self.untried = list(range(arms))
        self.fitted = False

    def choose(self) -> tuple[int, None]:
        if self.untried:
            return self.untried.pop(), None
        return (self.mab.predict() if self.fitted else 0), None  # or the first outcome is late

    def learn(self, arm: int, reward: float, ticket: None) -> None:
        (self.mab.partial_fit if self.fitted else self.mab.fit)([arm], [reward])
        self.fitted = True


class VowpalWabbit:
    """Costs are rewards with the sign turned."""

    def __init__(self, options: str, arms: int, seed: int) -> None:
        from vowpalwabbit import Workspace

        self.arms = arms
        self.by_action = "adf" in options
        self.examples = [f"| arm={arm}" for arm in range(arms)]
        wanted = options if self.by_action else f"{options} {arms}"
        self.workspace = Workspace(f"{wanted} --quiet --random_seed {seed}")
        self.rng = np.random.default_rng(seed)

    def choose(self) -> tuple[int, float]:
        chances = self.workspace.predict(self.examples if self.by_action else "| all")
        total = np.cumsum(chances)
        arm = min(int(np.searchsorted(total, self.rng.random() * total[-1])), self.arms - 1)
        return arm, chances[arm]

    def learn(self, arm: int, reward: float, ticket: float) -> None:
        if self.by_action:
            examples = list(self.examples)
            examples[arm] = f"0:{-reward}:{ticket} {examples[arm]}"
            self.workspace.learn(examples)
        else:
            self.workspace.learn(f"{arm + 1}:{-reward}:{ticket} | all")


def _river() -> list[Peer]:
    from river import bandit, preprocessing, proba

    def scaled(seed: int) -> Any:
        scaler = preprocessing.TargetStandardScaler(None)
        return bandit.UCB(delta=1, reward_scaler=scaler, seed=seed)

    made: Mapping[str, Callable[[int], Any]] = {
        "UCB": lambda seed: bandit.UCB(delta=1, seed=seed),
        "UCB, standardised": scaled,
        "Thompson, Gaussian": lambda seed: bandit.ThompsonSampling(proba.Gaussian(), seed=seed),
        "epsilon-greedy 0.1": lambda seed: bandit.EpsilonGreedy(0.1, seed=seed),
    }
    peers = [Peer(name, lambda k, seed, b=begin: River(b, k, seed)) for name, begin in made.items()]
    beta = Peer(
        "Thompson, Beta",
        lambda k, seed: River(
            lambda seed: bandit.ThompsonSampling(proba.Beta(), seed=seed), k, seed
        ),
        binary=True,
    )
    return [*peers, beta]


def _pymab() -> list[Peer]:
    anywhere = (
        "UCB",
        "SlidingWindowUCB",
        "DiscountedUCB",
        "ChangePointUCB",
        "CUSUMUCB",
        "PageHinkleyUCB",
        "GaussianThompsonSampling",
        "GaussianBayesianUCB",
        "EpsilonGreedy",
        "Softmax",
        "GradientBandit",
    )
    of_zero_and_one = (
        "KLUCB",
        "BernoulliThompsonSampling",
        "BernoulliBayesianUCB",
        "SlidingWindowBernoulliThompsonSampling",
        "DiscountedBernoulliThompsonSampling",
        "EXP3",
    )
    return [
        Peer(name, lambda k, seed, p=f"{name}Policy": Pymab(p, k, seed), name in of_zero_and_one)
        for name in (*anywhere, *of_zero_and_one)
    ]


def _bayesianbandits() -> list[Peer]:
    return [
        Peer(name, lambda k, seed, p=name: BayesianBandits(p, k, seed))
        for name in ("ThompsonSampling", "UpperConfidenceBound")
    ]


def _gittins() -> list[Peer]:
    return [Peer("default", Gittins)]


def _mabwiser() -> list[Peer]:
    anywhere = ("UCB1", "EpsilonGreedy", "Softmax")
    return [
        Peer(name, lambda k, seed, p=name: MabWiser(p, k, seed), name == "ThompsonSampling")
        for name in (*anywhere, "ThompsonSampling")
    ]


def _vowpalwabbit() -> list[Peer]:
    return [
        Peer(options, lambda k, seed, o=options: VowpalWabbit(o, k, seed))
        for options in ("--cb_explore", "--cb_explore_adf --squarecb")
    ]


LIBRARIES: Mapping[str, Callable[[], list[Peer]]] = {
    "pymab": _pymab,
    "bayesianbandits": _bayesianbandits,
    "gittins": _gittins,
    "river": _river,
    "mabwiser": _mabwiser,
    "vowpalwabbit": _vowpalwabbit,
}
"""Libraries by name; calling one needs it installed."""


def installed(library: str) -> str:
    """The version of a library, empty if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
