"""Bandit libraries from PyPI and our strategies, in one process and one run: ``make bench-peers``.

All get the same problems, reward by reward, at default settings. Regret is that of
``esper study regret``. Time is the median of choose + update on 8 arms, beside ten lines of UCB1 in
plain Python: the machine is shared, so judge a figure by that one. The table is Markdown.

F is left out: none of the libraries shares anything between layers, so that each arm of each layer
would be tried once and nothing else.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from math import log, sqrt
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.peer_libraries import LIBRARIES, Peer, Player, installed
from esper.services.tamiyo.bandit import Bandit
from esper.strategies import STRATEGIES
from esper.studies.simulated.environments import Environment, environments

OURS = ("auto", "change_ucb", "ucb", "thompson", "exp3", "random")
RUNS, STEPS = 10, 1000
_BATCH, _BATCHES, _PATIENCE = 100, 40, 2.0

Row = tuple[str, ...]
"""Library, policy, microseconds, and per environment: regret ± standard error (worst run)."""


def rows(
    where: Sequence[Environment], runs: int, steps: int, seed: int = 0, say: Any = None
) -> Iterator[Row]:
    """Rows as they are measured: ours, the floor, then library by library."""
    for name in OURS:
        if name in STRATEGIES.names():
            yield _row("esper", Peer(name, _ours(name)), where, runs, steps, seed)
    yield _row("plain Python", Peer("UCB1", _Plain), where, runs, steps, seed)
    for library, policies in LIBRARIES.items():
        found = installed(library)
        if not found:
            missing = f"not installed: pip install {library}"
            yield (library, missing, *["-"] * (len(where) + 1))
            continue
        for peer in policies():
            if say is not None:
                say(f"{library} {found}: {peer.name}")
            yield _row(f"{library} {found}", peer, where, runs, steps, seed)


def regrets(peer: Peer, where: Environment, runs: int, steps: int, seed: int) -> list[float]:
    """Regret of every run at its end."""
    steps = min(steps, where.horizon)
    found = []
    for run in range(runs):
        problem = where.problem(seed, run, steps)
        player = peer.begin(problem.rewards.shape[1], seed * 1_000_003 + run)
        delays, waiting = problem.delays.tolist(), dict[int, list[tuple[int, float, Any]]]()
        chosen = []
        for step, row in enumerate(problem.rewards.tolist()):
            arm, ticket = player.choose()
            chosen.append(arm)
            waiting.setdefault(step + delays[step], []).append((arm, row[arm], ticket))
            for outcome in waiting.pop(step, ()):
                player.learn(*outcome)
        got = problem.means[np.arange(steps), chosen]
        found.append(float((problem.means.max(axis=1) - got).sum()))
    return found


def microseconds(peer: Peer, seed: int) -> float:
    """Median time of choose + update, 8 arms; over batches, at most two seconds of them."""
    name = "A" if peer.binary else "B"
    steps = _BATCH * _BATCHES
    rewards = environments([name])[0].problem(seed, 0, steps).rewards[:, :8].tolist()
    player = peer.begin(8, seed)
    times: list[float] = []
    while len(times) < _BATCHES and sum(times) < _PATIENCE:
        part = rewards[len(times) * _BATCH : (len(times) + 1) * _BATCH]
        started = perf_counter()
        for row in part:
            arm, ticket = player.choose()
            player.learn(arm, row[arm], ticket)
        times.append(perf_counter() - started)
    return statistics.median(times) / _BATCH * 1e6


def _row(
    library: str, peer: Peer, where: Sequence[Environment], runs: int, steps: int, seed: int
) -> Row:
    cells = []
    for one in where:
        if peer.binary and not _binary(one):
            cells.append("0 and 1 only")
            continue
        found = np.array(regrets(peer, one, runs, steps, seed))
        error = found.std(ddof=1) / sqrt(runs) if runs > 1 else 0.0
        cells.append(f"{found.mean():.3g} ± {error:.2g} ({found.max():.3g})")
    return (library, peer.name, f"{microseconds(peer, seed):.1f}", *cells)


def _binary(where: Environment) -> bool:
    rewards = where.problem(0, 0, 100).rewards
    return bool(np.isin(rewards, (0.0, 1.0)).all())


class _Ours:
    def __init__(self, name: str, arms: int, seed: int) -> None:
        self.bandit = Bandit(name, arms, seed=seed)

    def choose(self) -> tuple[int, None]:
        return self.bandit.choose(), None

    def learn(self, arm: int, reward: float, ticket: None) -> None:
        self.bandit.update(arm, reward)


def _ours(name: str) -> Callable[[int, int], Player]:
    return lambda arms, seed: _Ours(name, arms, seed)


class _Plain:
    """UCB1 on rewards as they are; the floor of what a choice costs in this language."""

    def __init__(self, arms: int, seed: int) -> None:
        self.counts, self.means, self.total = [0] * arms, [0.0] * arms, 0
        self.untried = list(range(arms))

    def choose(self) -> tuple[int, None]:
        if self.untried:
            return self.untried.pop(), None
        if 0 in self.counts:  # an outcome is late
            return self.counts.index(0), None
        width = 2 * log(self.total)
        bounds = [
            mean + sqrt(width / count) for mean, count in zip(self.means, self.counts, strict=True)
        ]
        return bounds.index(max(bounds)), None

    def learn(self, arm: int, reward: float, ticket: None) -> None:
        self.total += 1
        self.counts[arm] += 1
        self.means[arm] += (reward - self.means[arm]) / self.counts[arm]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="100 runs of 5000 steps: hours")
    parser.add_argument("environments", nargs="*", default=["A", "B", "C", "D", "E"])
    asked = parser.parse_args(arguments)
    runs, steps = (100, 5000) if asked.full else (asked.runs, asked.steps)
    where = [one for one in environments(asked.environments) if not one.name.startswith("F")]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"commit {commit or 'unknown'}, Python {platform.python_version()}, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f}; {runs} runs of {steps} steps, seed {asked.seed}. "
        "Regret ± standard error (worst run).\n"
    )
    head = ["library", "policy", "µs", *[one.name for one in where]]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for row in rows(where, runs, steps, asked.seed, say):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
