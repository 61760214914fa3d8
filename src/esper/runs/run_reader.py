"""Runs read back from their folders and event logs; without torch, so that it is quick."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, final

from esper.contracts.config import chosen_by
from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.contracts.seeds import SeedState
from esper.runs import event_rows, placebos, run_lock
from esper.runs.run_folder import RunFolder, damaged, every, find
from esper.runs.store_address import SQLITE
from esper.services.tamiyo.preview import SeedPreview
from esper.stores import open_store
from esper.stores.addresses import shown

_DECISION = ("epoch", "strategy", "score", "propensity", "reason", "fallback")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Contents of a run's folder.

    Attributes:
        folder: The folder.
        spec: As ``RunSpec.to_json``, with ``slots``: blueprint of each seed by layer.
        control: ``losses`` epoch by epoch and ``scores`` of the un-grown control; empty until it
            is trained.
        static: The same of the static network of the grown one's size; empty if there is none.
        grown: ``losses`` of the grown network, epoch by epoch, ``None`` where there is none; empty
            if an older version trained it.
        result: Fields of ``Result``; ``None`` until the run has ended.
        running: Whether a process trains it now.
    """

    folder: RunFolder
    spec: Mapping[str, Any]
    control: Mapping[str, Any]
    result: Mapping[str, Any] | None
    static: Mapping[str, Any] = field(default_factory=dict)
    grown: Mapping[str, Any] = field(default_factory=dict)
    running: bool = False

    @property
    def strategy(self) -> str:
        """Strategy that chose the seeds, or the A/B test whose arms did."""
        return chosen_by(self.spec["config"])

    @property
    def slots(self) -> list[tuple[str, int, str]]:
        """Layer, seed and blueprint of every seed, in the order of the network."""
        return [
            (layer, seed_idx, blueprint)
            for layer, seeds in _slots_of(self.spec).items()
            for seed_idx, blueprint in enumerate(seeds)
        ]

    @property
    def state(self) -> str:
        """``"finished"``, ``"running"`` or ``"interrupted"``."""
        if self.result is not None:
            return "finished"
        return "running" if self.running else "interrupted"

    def events(self) -> list[Event]:
        """Read the run's event log, in order; empty before the control is trained.

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

    def not_stored(self) -> int:
        """Count the events of a run that ended and whose store lacks them, as after a power cut.

        Raises:
            StoreError: if the store cannot be read.
        """
        stored = self.folder.read("stored")
        if stored is None:
            return 0
        url = self.spec["store"] or f"{SQLITE}{(self.folder.path / 'history.db').resolve()}"
        place = Path(url.removeprefix(SQLITE))
        if url.startswith(SQLITE) and not place.exists():
            return int(stored["count"])
        with open_store(url, read_only=True) as store:
            gaps = store.missing(stored["writer"], stored["count"])
        return sum(last - first + 1 for first, last in gaps)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Summary of a run in one line.

    Attributes:
        run: Name of the run.
        task: Task that it trains.
        strategy: Strategy that chooses the seeds.
        seed: Run seed.
        epochs: Epochs in all.
        epochs_done: Epochs that the grown network has had.
        state: ``"finished"``, ``"running"`` or ``"interrupted"``; the last can be resumed.
        kept: Grafts that were kept.
        judged: Grafts that ended, kept or culled.
        control_test_accuracy: Of the un-grown control, once the run has ended.
        grown_test_accuracy: Of the grown network, once the run has ended.
        static_test_accuracy: Of the static network of its size, once the run has ended, if there
            is one.
        problem: Why the run cannot be read; empty if it can.
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
    static_test_accuracy: float | None = None
    problem: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSummary:
    """Summary of one seed in one run.

    Attributes:
        layer: Layer of the seed.
        seed: Index of the seed in its layer.
        blueprint: Blueprint bound to the seed.
        state: State at the end of the log.
        chosen: Choices of the seed.
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
    """Read the run of this name in ``runs``, or at this path.

    Raises:
        ConfigError: if there is none.
        StoreError: if its folder is damaged.
    """
    return read_folder(find(runs, name))


def read_folder(folder: RunFolder) -> Run:
    """Read the run in this folder.

    Raises:
        StoreError: if a file of it is missing or damaged.
    """
    spec = folder.read("run")
    if spec is None:
        raise StoreError(f"{folder.path} has no run.json, so it is not a run")
    missing = {"task", "seed", "epochs", "config", "store", "run"} - set(spec)
    if missing:
        raise StoreError(
            f"{folder.path / 'run.json'} is damaged: it lacks {', '.join(sorted(missing))}"
        )
    return Run(
        folder=folder,
        spec=spec,
        control=folder.read("control") or {},
        static=folder.read("static") or {},
        grown=folder.read("grown") or {},
        result=folder.read("report"),
        running=run_lock.is_held(folder),
    )


def summaries(runs: Path) -> Iterator[RunSummary]:
    """Summarise every run, the oldest first; one that cannot be read has a ``problem``."""
    for folder in every(runs):
        try:
            with damaged(f"run {folder.name}"):
                found = _summary(read_folder(folder))
            yield found
        except StoreError as error:
            yield RunSummary(run=folder.name, problem=str(error))


def seed_summaries(run: Run, events: Iterable[Event]) -> list[SeedSummary]:
    """Summarise every seed of a run, those never chosen included."""
    by_seed: dict[tuple[str, int], list[Event]] = {(name, idx): [] for name, idx, _ in run.slots}
    for event in events:
        seed = (event.data.get("layer"), event.data.get("seed"))
        if seed in by_seed:
            by_seed[seed].append(event)
    return [_seed_summary(*slot, by_seed[slot[:2]]) for slot in run.slots]


def grafts(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Grafts that ended, with the fields of ``Verdict``, in logs of any schema."""
    ends = [event.data for event in events if event.kind == "graft"]
    return [
        {
            **end,
            "layer_name": end.get("layer", end.get("layer_name")),
            "seed_idx": end.get("seed", end.get("seed_idx")),
        }
        for end in ends
    ]


def refusals(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Grafts that were requested and refused: epoch, layer, error, reason."""
    return [dict(event.data) for event in events if event.kind == "refusal"]


def decisions(events: Iterable[Event]) -> list[Mapping[str, Any]]:
    """Decisions as they were logged; those without a reason, which were only counted, left out."""
    return [event.data for event in events if event.kind == "decision" and "reason" in event.data]


def decision_summary(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Summary of a decision: seed, epoch, strategy, score, propensity, reason."""
    return {name: decision[name] for name in ("layer", "seed", *_DECISION)}


def document(
    run: Run, events: list[Event], previews: Mapping[tuple[str, int], SeedPreview]
) -> dict[str, Any]:
    """JSON document of a run.

    Args:
        run: The run.
        events: Event log of the run.
        previews: Preview of each seed, by layer and seed; missing where there is none.
    """
    made = decisions(events)
    return {
        "run": run.folder.name,
        "folder": str(run.folder.path),
        "state": run.state,
        "spec": {**run.spec, "store": shown(run.spec["store"])},
        "result": run.result,
        "seeds": [
            {**asdict(seed), "now": asdict(preview) if preview else None}
            for seed in seed_summaries(run, events)
            for preview in [previews.get((seed.layer, seed.seed))]
        ],
        "latest_decision": decision_summary(made[-1]) if made else None,
        "refusals": refusals(events),
        "placebos": asdict(placebos.of_events(events)),
        "events": event_rows.rows(events),
        "timings": event_rows.timings(events),
    }


def _seed_summary(
    layer: str, seed_idx: int, blueprint: str, events: Iterable[Event]
) -> SeedSummary:
    data: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        data.setdefault(event.kind, []).append(event.data)
    steps, chosen = data.get("lifecycle", []), data.get("decision", [])
    rewards = [outcome["reward"] for outcome in data.get("outcome", [])]
    return SeedSummary(
        layer=layer,
        seed=seed_idx,
        blueprint=blueprint,
        state=steps[-1]["new"] if steps else str(SeedState.DORMANT),
        chosen=len(chosen),
        outcomes=len(rewards),
        failures=len(data.get("failure", [])),
        kept=sum(end["kept"] for kind in ("graft", "verdict") for end in data.get(kind, [])),
        mean_reward=fmean(rewards) if rewards else None,
        last_decision={name: chosen[-1][name] for name in _DECISION} if chosen else None,
    )


def _slots_of(spec: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Blueprint of each seed by layer; older versions wrote layers and seeds, alike for all."""
    slots: Mapping[str, Sequence[str]] = spec.get("slots", {})
    return slots or dict.fromkeys(spec.get("layers", ()), spec.get("seeds", ()))


def _summary(run: Run) -> RunSummary:
    spec, result = run.spec, run.result
    head: dict[str, Any] = {
        "run": run.folder.name,
        "task": spec["task"],
        "strategy": run.strategy,
        "seed": spec["seed"],
        "epochs": spec["epochs"],
        "state": run.state,
    }
    if result is None:
        try:
            events = run.events()
        except StoreError as error:
            return RunSummary(**head, problem=str(error))
        ended, done = grafts(events), sum(event.kind == "epoch" for event in events)
    else:
        ended, done = result["grafts"], spec["epochs"]
    return RunSummary(
        **head,
        epochs_done=done,
        kept=sum(graft["kept"] for graft in ended),
        judged=len(ended),
        **{
            f"{part}_test_accuracy": result[part]["test_accuracy"]
            for part in ("control", "grown", "static")
            if result and result.get(part)
        },
    )


def _read(url: str, run: str) -> list[Event]:
    with open_store(url, read_only=True) as store:
        return [event for _, event in store.read(run=run)]
