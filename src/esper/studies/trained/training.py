"""One run of the effect study: trained by the product's own public loop, measured from outside.

Test data decide nothing: they are read at the end of each epoch for the figures alone.
"""

import json
import logging
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.runs.references import train_epoch
from esper.runs.train import one_thread
from esper.services.tamiyo import setup
from esper.services.tamiyo.settings import config_from
from esper.services.tamiyo.tamiyo import Tamiyo
from esper.studies.trained.cells import CONTROL, EffectRun
from esper.studies.trained.counting import Meter
from esper.studies.trained.fleet import Adaptation
from esper.tasks import TASKS
from esper.tasks.base import Task
from esper.widths.wrap import wrap

_FLEETS = 1000
"""Seeds of a run seed's adaptations."""

_CHOICE = ("layer", "seed", "blueprint", "epoch", "strategy", "propensity")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Result of a run; everything that a figure is made of.

    Attributes:
        name: Name of the run in the study.
        task: Task.
        cell: Cell.
        seed: Run seed of the pair.
        run_seed: Seed that it was trained with.
        test_losses: Mean test loss in nats at the end of each epoch, or adaptation of a fleet.
        test_accuracies: Test accuracy then, in [0, 1].
        parameters: Trainable parameters at the end; in a fleet the mean.
        flops: Operations of each of them, all passes on the side included, as `Meter` counts them.
        seconds: Processor time of the training, counting included and test evaluations not.
        grafts: Grafts that ended, in order, as `Verdict` has them.
        choices: Choices, in order: layer, seed, blueprint, epoch, strategy, propensity; those that
            lost an audition too.
        auditions: Events of auditions: what each seed earned beside the others.
        machine: Versions and processor.
    """

    name: str
    task: str
    cell: str
    seed: int
    run_seed: int
    test_losses: list[float]
    test_accuracies: list[float]
    parameters: int
    flops: list[int]
    seconds: float
    grafts: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    auditions: list[dict[str, Any]]
    machine: dict[str, str]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Trained":
        """Result from the JSON data of its fields."""
        return cls(**{item.name: data[item.name] for item in fields(cls)})


def train_run(run: EffectRun, history: bytes | None) -> tuple[Trained, bytes | None]:
    """Train a run.

    Args:
        run: The run.
        history: SQLite file of the earlier runs that it inherits; ``None`` if there are none.

    Returns:
        The result; and of a run that teaches, the file of all runs so far, this one the last.
    """
    with one_thread(), tempfile.TemporaryDirectory(prefix="esper-effect-") as folder:
        path = Path(folder, "history.db")
        if history is not None:
            path.write_bytes(history)
        if run.setup.adaptations:
            with _expected(run):
                return _train_fleet(run, None if run.cell.alone else f"sqlite:///{path}"), None
        keeps = history is not None or run.cell.teacher
        loop = _Loop(run, TASKS.create(run.setup.task), f"sqlite:///{path}" if keeps else None)
        for epoch in range(run.setup.epochs):
            loop.train(epoch)
            loop.test()
        result = loop.end()
        return result, path.read_bytes() if run.cell.teacher else None


@contextmanager
def _expected(run: EffectRun) -> Iterator[None]:
    """Nothing warns that each adaptation of a fleet wraps other layers, where each has one arm."""
    logger = logging.getLogger(setup.__name__)
    before, logger.disabled = logger.disabled, logger.disabled or bool(run.cell.arm)
    try:
        yield
    finally:
        logger.disabled = before


def _train_fleet(run: EffectRun, store: str | None) -> Trained:
    """Adaptations one after another on one store; losses are those at the end of each."""
    ended = []
    for number in range(run.setup.adaptations):
        loop = _Loop(run, Adaptation(run.run_seed, number), store, number)
        for epoch in range(run.setup.epochs):
            loop.train(epoch)
        loop.test()
        ended.append(loop.end())
    return replace(
        ended[0],
        name=run.name,
        test_losses=[one.test_losses[-1] for one in ended],
        test_accuracies=[one.test_accuracies[-1] for one in ended],
        parameters=round(fmean(one.parameters for one in ended)),
        flops=[sum(one.flops) for one in ended],
        seconds=sum(one.seconds for one in ended),
        grafts=_of_all([one.grafts for one in ended]),
        choices=_of_all([one.choices for one in ended]),
        auditions=_of_all([one.auditions for one in ended]),
    )


def _of_all(adaptations: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"adaptation": number, **fact} for number, facts in enumerate(adaptations) for fact in facts
    ]


@final
class _Loop:
    """The user's loop: wrap, Tamiyo, two calls in each epoch; and what is measured around it."""

    def __init__(
        self, run: EffectRun, task: Task, store: str | None, number: int | None = None
    ) -> None:
        self.run, self.task = run, task
        self.name, self.seed = run.name, run.run_seed
        if number is None:
            task.batches = run.setup.batches
        else:
            self.name, self.seed = f"{run.name}-{number}", run.run_seed * _FLEETS + number
        self.grafts: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.seconds = 0.0
        self.tamiyo: Tamiyo | None = None
        self.model: nn.Module = task.host(self.seed)
        if run.cell.name != CONTROL:
            self.model = wrap(self.model, *run.sites(number or 0))
        self.optimizer: Optimizer = task.optimizer(self.model)
        self.scheduler: LRScheduler = task.scheduler(self.optimizer, run.setup.epochs)
        if run.cell.name != CONTROL:
            settings = run.setup.settings(run.cell.selection, run.cell.policy)
            config = config_from(settings, source=self.name)
            self.tamiyo = Tamiyo(
                self.model,
                self.optimizer,
                loss_fn=task.loss_fn,
                holdout=task.validation_batches(),
                config=config,
                store=store,
                scheduler=self.scheduler,
                seed=self.seed,
                scope=run.setup.task,
                run=self.name,
            )
        self.meter = Meter(self.tamiyo.config.growth.probe_every if self.tamiyo else 0)

    def train(self, epoch: int) -> None:
        began = process_time()
        train_epoch(
            self.task,
            self.model,
            self.optimizer,
            epoch=epoch,
            seed=self.seed,
            tamiyo=self.tamiyo,
            around=self.meter.batch,
        )
        self.scheduler.step()
        with self.meter.epoch_end():
            if self.tamiyo is not None:
                report = self.tamiyo.on_epoch_end(epoch)
                self.grafts += [asdict(verdict) for verdict in report.verdicts]
        self.seconds += process_time() - began

    def test(self) -> None:
        test = self.task.test_batches()
        self.losses.append(evaluate(self.model, self.task.loss_fn, test))
        self.accuracies.append(evaluate(self.model, self.task.accuracy_fn, test))

    def end(self) -> Trained:
        events = []
        if self.tamiyo is not None:
            self.tamiyo.finish()
            events = self.tamiyo.events()
            self.tamiyo.close()
        made = [dict(event.data) for event in events if event.kind == "decision"]
        data = Trained(
            name=self.name,
            task=self.run.setup.task,
            cell=self.run.cell.name,
            seed=self.run.seed,
            run_seed=self.run.run_seed,
            test_losses=self.losses,
            test_accuracies=self.accuracies,
            parameters=count_parameters(self.model),
            flops=self.meter.flops,
            seconds=self.seconds,
            grafts=self.grafts,
            choices=[{name: choice[name] for name in _CHOICE} for choice in made],
            auditions=[dict(event.data) for event in events if event.kind == "audition"],
            machine=_machine(),
        )
        # As a file would give it back: lists for tuples, and nothing that a file could not hold.
        return Trained.from_json(json.loads(json.dumps(asdict(data))))


def _machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
