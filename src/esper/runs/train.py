"""Training run of ``esper train``: the un-grown control, the same host grown, a static network.

Control and host start from the same weights, and all see the same batches in the same order at the
same rates; so until the first kernel is blended in the first two are the same network, bit for bit,
and what differs afterwards is growth's doing. The static network has the grown one's size from the
beginning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.schema import require_schema
from esper.execution import checkpoint
from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.execution.surgery import name_layers
from esper.runs.references import reference, train_epoch, width_of_size
from esper.runs.result import (
    SCORED_EPOCHS,
    OnProgress,
    Progress,
    Result,
    Scores,
    mean_scores,
    networks,
    score,
)
from esper.runs.run_folder import RunFolder, damaged
from esper.runs.spec import RunSpec
from esper.services.tamiyo.report import EpochReport, Verdict
from esper.services.tamiyo.tamiyo import SCHEMA, Tamiyo
from esper.tasks import TASKS
from esper.tasks.base import Task
from esper.widths.wrap import wrap


def train(spec: RunSpec, folder: RunFolder, *, on_progress: OnProgress) -> Result:
    """Train the run of ``spec``, or resume it; the folder has the result afterwards.

    It can be stopped at any time, even by a kill, and called again: it resumes after the last epoch
    that ended, and its event log becomes that of a run that was never stopped. The control and the
    static network, which are quick, begin anew if they were stopped.

    Raises:
        StoreError: if the event log cannot be opened or the checkpoint read.
        ConfigError: if a setting is wrong, or an older version began the run.
    """
    with one_thread():
        return _train(spec, folder, on_progress)


def store_url(spec: RunSpec, folder: RunFolder) -> str:
    """URL of the run's event log."""
    return spec.store or f"sqlite:///{Path(folder.path, 'history.db').resolve()}"


def _train(spec: RunSpec, folder: RunFolder, on_progress: OnProgress) -> Result:
    task = TASKS.create(spec.task)
    saved = checkpoint.load(folder.checkpoint) if folder.checkpoint.exists() else None
    if saved is not None:  # before anything is written that its own version could not read
        with damaged(f"checkpoint {folder.checkpoint}"):
            _refuse_older(saved, folder)
    layers = name_layers(_wrapped(task, spec))
    slots = {name: list(layer.seed_blueprints) for name, layer in layers.items()}
    folder.write("run", {**spec.to_json(), "slots": slots})
    control = reference(task, spec, folder, "control", width=task.width, on_progress=on_progress)
    losses = control["losses"]
    grown = _grow(task, spec, folder, saved, losses=losses, on_progress=on_progress)
    others: dict[str, Scores | None] = {"static": None, "full": None}
    for part in networks(spec.task, static=spec.static)[2:]:
        full = part == "full"
        width = task.width if full else width_of_size(task, grown["grown"].parameters)
        found = reference(
            task, spec, folder, part, width=width, on_progress=on_progress, control_losses=losses
        )
        others[part] = Scores(**found["scores"])
    result = Result(
        control=Scores(**control["scores"]),
        static=others["static"],
        full=others["full"],
        scored_epochs=min(SCORED_EPOCHS, spec.epochs),
        **grown,
    )
    folder.write("report", asdict(result))
    return result


def _refuse_older(saved: dict[str, Any], folder: RunFolder) -> None:
    require_schema(saved["tamiyo"], "Tamiyo", SCHEMA)
    if "scheduler" not in saved:
        raise ConfigError(
            f"run {folder.name!r} was begun by an older version, whose learning rates had no "
            "schedule; it can be inspected, but not resumed. Start it anew"
        )


def _grow(
    task: Task,
    spec: RunSpec,
    folder: RunFolder,
    saved: dict[str, Any] | None,
    *,
    losses: list[float],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train the grown network, from its checkpoint on; fields of `Result` about it."""
    model = _wrapped(task, spec)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, spec.epochs)
    tamiyo = _tamiyo(task, spec, folder, model=model, optimizer=optimizer, scheduler=scheduler)
    if saved is not None:
        with damaged(f"checkpoint {folder.checkpoint}"):
            model.load_state_dict(saved["model"])
            tamiyo.load_state_dict(saved["tamiyo"])
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
    saved = saved or {"epoch": -1, "verdicts": [], "scores": []}
    curve: list[float | None] = saved.get("losses", [None] * (saved["epoch"] + 1))
    verdicts = [Verdict(**graft) for graft in saved["verdicts"]]
    scores = [Scores(**one) for one in saved["scores"]]
    for epoch in range(saved["epoch"] + 1, spec.epochs):
        train_epoch(task, model, optimizer, epoch=epoch, seed=spec.seed, tamiyo=tamiyo)
        scheduler.step()
        report = tamiyo.on_epoch_end(epoch)
        verdicts.extend(report.verdicts)
        curve.append(_held_out_loss(task, model, report))
        if epoch >= spec.epochs - SCORED_EPOCHS:
            scores.append(score(task, model))
        tree = {
            "epoch": epoch,
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "tamiyo": tamiyo.state_dict(),
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "scores": [asdict(one) for one in scores],
            "losses": curve,
        }
        checkpoint.save(folder.checkpoint, tree)
        folder.write("grown", {"losses": curve})
        on_progress(
            Progress(
                part="grown",
                epoch=epoch,
                epochs=spec.epochs,
                loss=curve[-1],
                control_loss=losses[epoch],
                parameters=count_parameters(model),
                report=report,
                tamiyo=tamiyo,
            )
        )
    found = {
        "grown": mean_scores(scores),
        "grafts": tuple(verdicts),
        "under_way": len(tamiyo.grafts.grafts),
        "used": tamiyo.used,
        "budget": tamiyo.budget,
    }
    tamiyo.finish()
    _close(tamiyo, folder)
    return found


def _close(tamiyo: Tamiyo, folder: RunFolder) -> None:
    events = tamiyo.tracker.events
    stored = {
        "writer": events.name,
        "count": events.written,
        "identity": tamiyo.journal.store.identity,
    }
    try:
        tamiyo.close()
    except StoreError as error:
        raise StoreError(
            f"run {folder.name!r} is trained, but {error}. Nothing is lost for good: once the "
            f"store works, deliver them with: esper train --resume {quote(folder.name)}"
        ) from error
    folder.write("stored", stored)


def _held_out_loss(task: Task, model: nn.Module, report: EpochReport) -> float | None:
    """Held-out loss at the end of an epoch, measured if growth had no need of it any more.

    ``None`` if it is not finite.
    """
    loss = report.holdout_loss
    if report.over and not report.measured:  # the curves of the others go to the end, too
        loss = evaluate(model, task.loss_fn, task.validation_batches())
    return loss if isfinite(loss) else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: the hosts are too small for more, and no result depends on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _wrapped(task: Task, spec: RunSpec) -> nn.Module:
    chosen = spec.wrap
    example = next(iter(task.train_batches(0, spec.seed)))
    given = {"widen": chosen.widen, "example": example, "loss_fn": task.loss_fn}
    return wrap(task.host(spec.seed), chosen.layers, chosen.seeds, **given)  # type: ignore[arg-type]


def _tamiyo(
    task: Task,
    spec: RunSpec,
    folder: RunFolder,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
) -> Tamiyo:
    return Tamiyo(
        model,
        optimizer,
        loss_fn=task.loss_fn,
        holdout=task.validation_batches(),
        config=spec.config.model_copy(update={"wrap": None}),
        store=store_url(spec, folder),
        scheduler=scheduler,
        seed=spec.seed,
        scope=spec.task,
        run=spec.run,
    )
