"""Choosing on recorded auditions: share of what the best seed earned, in seconds instead of hours.

Before each graft of a recorded run every seed of every site was heard, so the gain of whichever is
chosen is known. The product's own selector and worths choose; what it hears beside the best one it
learns, and the best of those goes on. The gains of later grafts are those that followed the
recorded choice, not the replayed one: use this to compare ways of choosing, and `esper study
effect` to say what they are worth. All layers count as one type. Recorded: the oracle's runs of
that study, by

    python -m benchmarks.auditions FOLDER

which rewrites audition_tables.json beside this file.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from esper.contracts.audition import FADING, Contrast
from esper.contracts.errors import ConfigError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionContext
from esper.services.tamiyo.cohort import Asked, reserve_cohort, worths_of
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.studies.trained.setups import SETUPS

TABLES = Path(__file__).with_name("audition_tables.json")
GRAFTS = 8
"""Grafts that are replayed; later gains are smaller than their noise."""

_PUPILS = 6
"""Orders of teaching runs that each run is replayed after, at most."""

Arm = tuple[str, int]
Row = tuple[str, str, str]
"""Measure, value, goal."""


class Heard(NamedTuple):
    """What a seed earned in the shadow, and its standard error."""

    gain: float
    stderr: float


@dataclass(frozen=True)
class Point:
    """Moment before a graft: what each seed earned; the layer that grew, if its kernel stayed."""

    heard: Mapping[Arm, Heard]
    grown: str


@dataclass
class Replay:
    """Runs that are replayed one after the other over one history."""

    task: str
    store: MemoryStore = field(default_factory=MemoryStore)
    runs: int = 0

    def run(self, points: Sequence[Point]) -> tuple[float, int]:
        """Sum of the gains of what was chosen, and the number of seeds that were heard."""
        tracker = PerformanceTracker(store=self.store, scope=self.task, run=f"r{self.runs}")
        selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker, seed=self.runs)
        self.runs += 1
        earned, heard, kernels = 0.0, 0, defaultdict[str, int](int)
        for epoch, point in enumerate(points):
            asked = _asked(point, epoch, self.task)
            faded = {name: FADING ** kernels[name] for name in asked}
            decisions = reserve_cohort(selector, asked, faded)
            heard += len(decisions)
            best = (
                _hear(selector, decisions, point) if decisions else _decide(selector, asked, faded)
            )
            gain, stderr = point.heard[best.layer_name, best.seed_idx]
            delta = PerformanceDelta(reward=gain, reward_stderr=stderr)
            layer, seed = best.layer_name, best.seed_idx
            tracker.update_metrics_now(layer, seed, delta, decision=best)
            selector.free(layer, seed, None)
            earned += gain
            kernels[point.grown] += 1
        return earned, heard


def rows(tables: Mapping[str, Any] | None = None) -> list[Row]:
    """Share of the oracle by task, after 0, 1 and 2 runs; of the recorded tables by default."""
    made = []
    for task, runs in read(tables).items():
        best = sum(_best(point) for run in runs for point in run)
        mean = sum(fmean(h.gain for h in point.heard.values()) for run in runs for point in run)
        made.append((f"{task}: an average seed, {len(runs)} runs", f"{mean / best:.2f}", ""))
        for taught in range(min(3, len(runs))):
            share, heard = _taught(task, runs, taught)
            what = f"{task}: auto, runs before: {taught}" if taught else f"{task}: auto, cold"
            goal = ">= 0.85" if taught else ">= 0.75"
            made.append((what, f"{share:.2f} of the oracle, {heard:.1f} seeds heard", goal))
    return made


def read(tables: Mapping[str, Any] | None = None) -> dict[str, list[list[Point]]]:
    """Runs by task, of JSON data or recorded."""
    if tables is None:
        tables = json.loads(TABLES.read_text(encoding="utf-8"))
    return {
        task: [[_point(one) for one in run][:GRAFTS] for run in runs]
        for task, runs in tables.items()
    }


def record(folder: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """Tables of the oracle's runs in the folder of an effect study, as JSON data.

    Raises:
        ConfigError: if there are none.
    """
    found = defaultdict[str, list[list[dict[str, Any]]]](list)
    for path in sorted(Path(folder, "runs").glob("*-oracle-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
        found[result["task"]].append(list(_recorded(result)))
    if not found:
        raise ConfigError(
            f"{folder} has no runs of the oracle; make some: esper study effect --cell oracle "
            f"--folder {folder}"
        )
    return dict(found)


def _recorded(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    points = defaultdict[str, list[list[Any]]](list)
    for one in result["auditions"]:
        numbers = float(f"{one['gain']:.4g}"), float(f"{one['stderr']:.3g}")
        points[one["point"]].append([one["layer"], one["seed"], *numbers])
    for heard, graft in zip(points.values(), result["grafts"], strict=False):
        yield {"heard": heard, "grown": graft["layer_name"] if graft["kept"] else ""}


def _point(data: Mapping[str, Any]) -> Point:
    heard = {(layer, seed): Heard(*numbers) for layer, seed, *numbers in data["heard"]}
    return Point(heard, data["grown"])


def _taught(task: str, runs: Sequence[Sequence[Point]], taught: int) -> tuple[float, float]:
    earned, best, counts = 0.0, 0.0, []
    for at, run in enumerate(runs):
        others = [one for number, one in enumerate(runs) if number != at]
        for before in list(permutations(others, taught))[:_PUPILS]:
            replay = Replay(task)
            for one in before:
                replay.run(one)
            gain, heard = replay.run(run)
            earned, best = earned + gain, best + sum(_best(point) for point in run)
            counts.append(heard)
    return earned / best, fmean(counts)


def _best(point: Point) -> float:
    return max(heard.gain for heard in point.heard.values())


def _asked(point: Point, epoch: int, task: str) -> Asked:
    blueprints = dict(enumerate(SETUPS[task].seeds))
    seeds = defaultdict[str, list[int]](list)
    for layer, seed in point.heard:
        seeds[layer].append(seed)
    context = SelectionContext(current_epoch=epoch, layer_type="recorded", blueprints=blueprints)
    return {layer: (sorted(found), context) for layer, found in seeds.items()}


def _decide(selector: SeedSelector, asked: Asked, faded: Mapping[str, float]) -> Decision:
    """Seed of the site where the best one is expected, as the learned policy takes it."""
    worths = worths_of(selector, asked, faded)
    layer = worths.arms[worths.best][0]
    decision = selector.decide(layer, *asked[layer])
    selector.commit(layer, decision.seed_idx)
    return decision


def _hear(selector: SeedSelector, decisions: Sequence[Decision], point: Point) -> Decision:
    heard = [point.heard[one.layer_name, one.seed_idx] for one in decisions]
    mean, noise = fmean(one.gain for one in heard), fmean(one.stderr for one in heard)
    best = max(zip(heard, decisions, strict=True), key=lambda pair: pair[0].gain)[1]
    for one, (gain, stderr) in zip(decisions, heard, strict=True):
        contrast = Contrast(point=one.audition, gain=gain, stderr=stderr, mean=mean, noise=noise,
                            cohort=len(heard))  # fmt: skip
        selector.performance_tracker.record_audition(one, contrast)
        selector.commit(one.layer_name, one.seed_idx)
        if one is not best:
            selector.performance_tracker.withdraw(one)
            selector.free(one.layer_name, one.seed_idx, None)
    return best


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.auditions FOLDER")
    TABLES.write_text(json.dumps(record(Path(sys.argv[1])), separators=(",", ":")) + "\n")
