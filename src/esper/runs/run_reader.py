"""Runs read back from their folders and event logs, without torch, so that looking is quick."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, final

from esper.contracts.config import chosen_by
from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.contracts.seeds import SeedState
from esper.runs import event_rows as facts
from esper.runs import run_lock
from esper.runs.run_folder import RunFolder, every, find
from esper.runs.store_address import SQLITE, without_password
from esper.services.tamiyo.preview import SeedOutlook
from esper.stores import open_store

_TOLD = ("epoch", "strategy", "score", "propensity", "reason", "fallback")
"""What a person is told of a decision."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run's folder says.

    Attributes:
        folder: Where it is.
        spec: What was asked for, as ``RunSpec.to_json``, with the task's ``layers`` and ``seeds``.
        control: ``losses`` epoch by epoch and ``scores`` of the un-grown control; empty until it
            is trained.
        result: As ``Result.to_json``; ``None`` until the run has ended.
        running: Whether a process trains it now.
    """

    folder: RunFolder
    spec: Mapping[str, Any]
    control: Mapping[str, Any]
    result: Mapping[str, Any] | None
    running: bool = False

    @property
    def strategy(self) -> str:
        """Who chose the seeds: a strategy, or the arms of an A/B test."""
        return chosen_by(self.spec["config"])

    @property
    def slots(self) -> list[tuple[str, int, str]]:
        """Layer, seed and blueprint of every slot, in the order of the network."""
        return [
            (layer, seed_idx, blueprint)
            for layer in self.spec["layers"]
            for seed_idx, blueprint in enumerate(self.spec["seeds"])
        ]

    @property
    def state(self) -> str:
        """``"finished"``, ``"running"`` or ``"interrupted"``."""
        if self.result is not None:
            return "finished"
        return "running" if self.running else "interrupted"

    def events(self) -> list[Event]:
        """The run's event log, in order; empty before the control is trained.

        Raises:
            StoreError: if the store cannot be read.
        """
        url = self.spec["store"]
        place = Path(url.removeprefix(SQLITE)) if url else self.folder.path / "history.db"
        if url and not url.startswith(SQLITE):
            return _read(url, self.spec["run"])
        if place.exists():
            return _read(f"{SQLITE}{place.resolve()}", self.spec["run"])
        if url:  # opening it would make an empty one
            raise StoreError(
                f"the event log of run {self.folder.name!r} was in {place}, and there is no such "
                "file; put it back"
            )
        return []


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in one line.

    Attributes:
        run: Its name.
        task: What it trained.
        strategy: Who chose the seeds.
        seed: Run seed.
        epochs: How many were asked for.
        epochs_done: How many the grown network has had.
        state: ``"finished"``, ``"running"`` or ``"interrupted"``; the last can be resumed.
        kept: Grafts that were kept.
        judged: Grafts that ended, kept or culled.
        control_test_accuracy: Of the un-grown control, once the run has ended.
        grown_test_accuracy: Of the grown network, once the run has ended.
        problem: Why the rest is not known; empty if it is.
    """

    run: str
    task: str = ""
    strategy: str = ""
    seed: int | None = None
    epochs: int | None = None
    epochs_done: int | None = None
    state: str = ""
    kept: int | None = None
    judged: int | None = None
    control_test_accuracy: float | None = None
    grown_test_accuracy: float | None = None
    problem: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SeedStory:
    """What became of one seed in one run.

    Attributes:
        layer: Its layer.
        seed: Its index.
        blueprint: What it grows.
        state: Where it stands.
        chosen: How often it was chosen.
        outcomes: Grafts that were measured.
        failures: Grafts that failed with an error.
        kept: Grafts that were kept.
        mean_reward: Mean of the measured rewards; ``None`` without one.
        last_decision: Epoch, strategy, score (``None``: never tried before), propensity and reason
            of the last choice of this seed; ``None`` if there was none.
    """

    layer: str
    seed: int
    blueprint: str
    state: str
    chosen: int
    outcomes: int
    failures: int
    kept: int
    mean_reward: float | None
    last_decision: Mapping[str, Any] | None


def read_run(runs: Path, name: str) -> Run:
    """The run of this name in ``runs``, or at this path.

    Raises:
        ConfigError: if there is none.
        StoreError: if its folder is damaged.
    """
    return read_folder(find(runs, name))


def read_folder(folder: RunFolder) -> Run:
    """The run in this folder.

    Raises:
        StoreError: if a file of it is missing or damaged.
    """
    spec = folder.read("run")
    if spec is None:
        raise StoreError(f"{folder.path} has no run.json, so it is not a run")
    missing = {"task", "seed", "epochs", "config", "store", "run", "layers", "seeds"} - set(spec)
    if missing:
        raise StoreError(
            f"{folder.path / 'run.json'} is damaged: it lacks {', '.join(sorted(missing))}"
        )
    return Run(
        folder=folder,
        spec=spec,
        control=folder.read("control") or {},
        result=folder.read("report"),
        running=run_lock.is_held(folder),
    )


def summaries(runs: Path) -> Iterator[Summary]:
    """Every run in one line, the oldest first; one that cannot be read says why."""
    for folder in every(runs):
        try:
            yield _summary(read_folder(folder))
        except StoreError as error:
            yield Summary(run=folder.name, problem=str(error))


def seed_stories(run: Run, events: Iterable[Event]) -> list[SeedStory]:
    """What became of every seed, those never chosen included."""
    found: dict[tuple[str, int], _Tally] = {
        (layer, seed_idx): _Tally() for layer, seed_idx, _ in run.slots
    }
    for event in events:
        where = (event.data.get("layer"), event.data.get("seed"))
        if where in found:
            found[where].take(event)
    return [found[layer, idx].story(layer, idx, blueprint) for layer, idx, blueprint in run.slots]


def refusals(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Grafts that were asked for and did not come about: epoch, layer, error, reason."""
    return [dict(event.data) for event in events if event.kind == "refusal"]


def decisions(events: Iterable[Event]) -> list[Mapping[str, Any]]:
    """Every choice of a seed, as it was logged; one that was only counted says nothing."""
    return [event.data for event in events if event.kind == "decision" and "reason" in event.data]


def told(decision: Mapping[str, Any]) -> dict[str, Any]:
    """What a person is told of a decision: which seed, when, by whom, how likely, why."""
    return {name: decision[name] for name in ("layer", "seed", *_TOLD)}


def document(
    run: Run, events: list[Event], outlooks: Mapping[tuple[str, int], SeedOutlook]
) -> dict[str, Any]:
    """Everything about a run, for machines.

    Args:
        run: The run.
        events: Its log.
        outlooks: Layer and seed, and what the strategy thinks of it now.
    """
    made = decisions(events)
    return {
        "run": run.folder.name,
        "folder": str(run.folder.path),
        "state": run.state,
        "spec": {**run.spec, "store": without_password(run.spec["store"])},
        "result": run.result,
        "seeds": [
            {**asdict(story), "now": asdict(now) if now else None}
            for story in seed_stories(run, events)
            for now in [outlooks.get((story.layer, story.seed))]
        ],
        "latest_decision": told(made[-1]) if made else None,
        "refusals": refusals(events),
        "events": facts.log(events),
        "timings": facts.timings(events),
    }


class _Tally:
    """Adds up one seed's events."""

    def __init__(self) -> None:
        self.state = str(SeedState.DORMANT)
        self.chosen = self.failures = self.kept = 0
        self.rewards: list[float] = []
        self.last: Mapping[str, Any] | None = None

    def take(self, event: Event) -> None:
        data = event.data
        if event.kind == "lifecycle":
            self.state = data["new"]
        elif event.kind == "decision":
            self.chosen += 1
            self.last = {name: data[name] for name in _TOLD}
        elif event.kind == "outcome":
            self.rewards.append(data["reward"])
        elif event.kind == "failure":
            self.failures += 1
        elif event.kind == "verdict":
            self.kept += bool(data["kept"])

    def story(self, layer: str, seed_idx: int, blueprint: str) -> SeedStory:
        return SeedStory(
            layer=layer,
            seed=seed_idx,
            blueprint=blueprint,
            state=self.state,
            chosen=self.chosen,
            outcomes=len(self.rewards),
            failures=self.failures,
            kept=self.kept,
            mean_reward=fmean(self.rewards) if self.rewards else None,
            last_decision=self.last,
        )


def _summary(run: Run) -> Summary:
    spec, result = run.spec, run.result
    head: dict[str, Any] = {
        "run": run.folder.name,
        "task": spec["task"],
        "strategy": run.strategy,
        "seed": spec["seed"],
        "epochs": spec["epochs"],
        "state": run.state,
    }
    if result is not None:
        return Summary(
            **head,
            epochs_done=spec["epochs"],
            kept=sum(graft["kept"] for graft in result["grafts"]),
            judged=len(result["grafts"]),
            control_test_accuracy=result["control"]["test_accuracy"],
            grown_test_accuracy=result["grown"]["test_accuracy"],
        )
    try:
        events = run.events()
    except StoreError as error:
        return Summary(**head, problem=str(error))
    grafts = [event for event in events if event.kind == "graft"]
    return Summary(
        **head,
        epochs_done=sum(event.kind == "epoch" for event in events),
        kept=sum(event.data["kept"] for event in grafts),
        judged=len(grafts),
    )


def _read(url: str, run: str) -> list[Event]:
    with open_store(url) as store:
        return [event for _, event in store.read(run=run)]
