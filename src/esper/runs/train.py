"""Training run of ``esper train``: the un-grown control first, then the same host, grown.

Both start from the same weights and see the same batches in the same order, so until the first
kernel is blended in they are the same network, bit for bit; what differs afterwards is growth's
doing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import nn
from torch.optim import Optimizer

from esper import __version__
from esper.contracts.config import Config
from esper.contracts.errors import ConfigError
from esper.contracts.schema import require_schema
from esper.execution import checkpoint
from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.execution.surgery import wrap
from esper.runs.run_folder import RunFolder
from esper.services.tamiyo.report import EpochReport, Verdict
from esper.services.tamiyo.tamiyo import SCHEMA, Tamiyo
from esper.strategies import STRATEGIES
from esper.tasks import TASKS
from esper.tasks.base import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Settings of a run; together with the code they determine the result.

    Attributes:
        task: Name in the task table.
        seed: Run seed of initial weights, order of batches and every choice.
        epochs: Epochs for which host and control train.
        config: All settings.
        store: URL of the event log; empty for one in the run's folder.
        run: Name of the run in the store.
    """

    task: str
    seed: int
    epochs: int
    config: Config
    store: str = ""
    run: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON data of the spec, with the version of Esper."""
        fields = {name: getattr(self, name) for name in RunSpec.__slots__}
        return {**fields, "config": self.config.model_dump(mode="json"), "version": __version__}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunSpec":
        """Spec from the JSON data of `to_json`."""
        fields = {name: data[name] for name in RunSpec.__slots__}
        return cls(**{**fields, "config": Config.model_validate(data["config"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Size, losses and accuracies of a network.

    Attributes:
        parameters: Trainable parameters.
        validation_loss: Mean loss on the held-out data that judged the grafts.
        validation_accuracy: Accuracy there.
        test_loss: Mean loss on data that decided nothing.
        test_accuracy: Accuracy there.
    """

    parameters: int
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a run at the end of an epoch.

    Attributes:
        part: ``"control"`` or ``"grown"``.
        epoch: The epoch that ended, from 0.
        epochs: Epochs in all.
        control_loss: Validation loss of the control at the end of that epoch.
        report: Report of Tamiyo; ``None`` for the control.
        tamiyo: The engine, read-only; ``None`` for the control.
    """

    part: str
    epoch: int
    epochs: int
    control_loss: float
    report: EpochReport | None = None
    tamiyo: Tamiyo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a run.

    Attributes:
        control: The un-grown control at the end.
        grown: The grown network at the end.
        grafts: Every graft that was judged, in order.
        under_way: Grafts that the end of the run cut short.
        used: Parameters of all kernels at the end, those under way included.
        budget: Parameters that growth could add in all.
    """

    control: Scores
    grown: Scores
    grafts: tuple[Verdict, ...]
    under_way: int
    used: int
    budget: int


OnProgress = Callable[[Progress], None]


def make_spec(
    task_name: str,
    *,
    seed: int = 0,
    epochs: int | None = None,
    config: Config | None = None,
    strategy: str | None = None,
    budget: int | None = None,
    store: str = "",
) -> RunSpec:
    """Make the spec of a run; epochs and budget default to the task's.

    Raises:
        ConfigError: if a name is unknown or a number out of range.
    """
    task = TASKS.create(task_name)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; it must be >= 0 and < {2**32}")
    epochs = task.default_epochs if epochs is None else epochs
    if epochs < 1:
        raise ConfigError(f"epochs is {epochs}; it must be at least 1")
    config = config or Config()
    if budget is None and not config.growth.model_fields_set & {"budget", "budget_share"}:
        budget = task.default_budget
    if budget is None:
        budget = config.growth.budget_for(count_parameters(task.host(seed)))
    if budget < 0:
        raise ConfigError(f"budget is {budget} parameters; it must be >= 0")
    data = config.model_dump(mode="json")
    data["growth"]["budget"] = budget
    if strategy is not None:
        STRATEGIES.load(strategy)
        if config.ab_test is not None:
            raise ConfigError(
                f"strategy {strategy!r} would have no say: the arms of ab_test "
                f"{config.ab_test.salt!r} decide; leave out one of the two"
            )
        data["seed_selection"]["strategy"] = strategy
    # Runs that share a store need names that no other machine gives.
    run = f"{task_name}-s{seed}" + (f"-{uuid4().hex[:8]}" if store else "")
    return RunSpec(
        task=task_name,
        seed=seed,
        epochs=epochs,
        config=Config.model_validate(data),
        store=store,
        run=run,
    )


def train(spec: RunSpec, folder: RunFolder, *, on_progress: OnProgress) -> Result:
    """Train the run of ``spec``, or resume it; the folder has the result afterwards.

    It can be stopped at any time, even by a kill, and called again: it resumes after the last epoch
    that ended, and its event log becomes that of a run that was never stopped.

    Raises:
        StoreError: if the event log cannot be opened or the checkpoint read.
        ConfigError: if a setting is wrong.
    """
    with _one_thread():
        return _train(spec, folder, on_progress)


def _train(spec: RunSpec, folder: RunFolder, on_progress: OnProgress) -> Result:
    task = TASKS.create(spec.task)
    seeds = {"layers": list(task.layers), "seeds": list(task.seeds)}
    saved = checkpoint.load(folder.checkpoint) if folder.checkpoint.exists() else None
    if saved is not None:  # before anything is written that its own version could not read
        require_schema(saved["tamiyo"], "Tamiyo", SCHEMA)
    folder.write("run", {**spec.to_json(), **seeds})
    control = _control(task, spec, folder, on_progress)
    losses = control["losses"]
    model = wrap(task.host(spec.seed), task.layers, task.seeds)
    optimizer = task.optimizer(model)
    tamiyo = _tamiyo(task, spec, folder, model=model, optimizer=optimizer)
    first = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        tamiyo.load_state_dict(saved["tamiyo"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
    verdicts = [Verdict(**graft) for graft in (saved or {}).get("verdicts", [])]
    for epoch in range(first, spec.epochs):
        _train_epoch(task, model, optimizer, epoch=epoch, seed=spec.seed, tamiyo=tamiyo)
        report = tamiyo.on_epoch_end(epoch)
        verdicts.extend(report.verdicts)
        tree = {
            "epoch": epoch,
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "tamiyo": tamiyo.state_dict(),
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
        checkpoint.save(folder.checkpoint, tree)
        on_progress(
            Progress(
                part="grown",
                epoch=epoch,
                epochs=spec.epochs,
                control_loss=losses[epoch],
                report=report,
                tamiyo=tamiyo,
            )
        )
    result = Result(
        control=Scores(**control["scores"]),
        grown=_score(task, model),
        grafts=tuple(verdicts),
        under_way=len(tamiyo.grafts.grafts),
        used=tamiyo.used,
        budget=tamiyo.budget,
    )
    tamiyo.finish()
    folder.write("report", asdict(result))
    tamiyo.close()
    return result


def store_url(spec: RunSpec, folder: RunFolder) -> str:
    """URL of the run's event log."""
    return spec.store or f"sqlite:///{Path(folder.path, 'history.db').resolve()}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: the hosts are too small for more, and no result depends on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tamiyo(
    task: Task, spec: RunSpec, folder: RunFolder, *, model: nn.Module, optimizer: Optimizer
) -> Tamiyo:
    return Tamiyo(
        model,
        optimizer,
        loss_fn=task.loss_fn,
        accuracy_fn=task.accuracy_fn,
        holdout=task.validation_batches(),
        config=spec.config,
        store=store_url(spec, folder),
        seed=spec.seed,
        scope=spec.task,
        run=spec.run,
    )


def _control(
    task: Task, spec: RunSpec, folder: RunFolder, on_progress: OnProgress
) -> dict[str, Any]:
    """Train the un-grown control, or read its losses if it has been trained."""
    known = folder.read("control")
    if known is not None and len(known["losses"]) >= spec.epochs:
        return known
    model = task.host(spec.seed)
    optimizer = task.optimizer(model)
    losses: list[float] = []
    for epoch in range(spec.epochs):
        _train_epoch(task, model, optimizer, epoch=epoch, seed=spec.seed)
        losses.append(evaluate(model, task.loss_fn, task.validation_batches()))
        on_progress(
            Progress(part="control", epoch=epoch, epochs=spec.epochs, control_loss=losses[-1])
        )
    found = {"losses": losses, "scores": asdict(_score(task, model))}
    folder.write("control", found)
    return found


def _train_epoch(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    epoch: int,
    seed: int,
    tamiyo: Tamiyo | None = None,
) -> None:
    # A pure function of seed and epoch, so a resumed run draws what it would have drawn.
    torch.manual_seed(seed * 1_000_003 + epoch)
    model.train()
    for batch in task.train_batches(epoch, seed):
        optimizer.zero_grad()
        task.loss_fn(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if tamiyo is not None:
            tamiyo.on_batch_end(batch)


def _score(task: Task, model: nn.Module) -> Scores:
    validation, test = task.validation_batches(), task.test_batches()
    return Scores(
        parameters=count_parameters(model),
        validation_loss=evaluate(model, task.loss_fn, validation),
        validation_accuracy=evaluate(model, task.accuracy_fn, validation),
        test_loss=evaluate(model, task.loss_fn, test),
        test_accuracy=evaluate(model, task.accuracy_fn, test),
    )
