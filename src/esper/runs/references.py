"""Networks that a grown one is compared with: the un-grown control, and a static one of its size.

All train alike: same seed, batches, epochs and schedule. Of a host that is frozen there is one
more, in which it trains too, at a learning rate of its own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.runs.result import SCORED_EPOCHS, OnProgress, Progress, mean_scores, score
from esper.runs.run_folder import RunFolder
from esper.runs.spec import RunSpec
from esper.services.tamiyo.tamiyo import Tamiyo
from esper.tasks.base import Task


def reference(
    task: Task,
    spec: RunSpec,
    folder: RunFolder,
    part: str,
    *,
    width: int,
    on_progress: OnProgress,
    control_losses: list[float] | None = None,
) -> dict[str, Any]:
    """Train a reference network, or read its losses if it has been trained.

    Args:
        task: The task.
        spec: Settings of the run.
        folder: Folder of the run; ``<part>.json`` has the result.
        part: ``"control"``, ``"static"`` or ``"full"``, in which nothing is frozen.
        width: Width of the host.
        on_progress: Called at the end of every epoch.
        control_losses: Losses of the control, unless this is the control.

    Returns:
        ``width``, ``losses`` epoch by epoch on the validation data, and ``scores``.
    """
    known = folder.read(part)
    if known is not None and known.get("width") == width and len(known["losses"]) >= spec.epochs:
        return known
    model = task.host(spec.seed, width=width)
    if part == "full":
        model.requires_grad_(True)
    optimizer = task.optimizer(model)
    if part == "full":
        for group in optimizer.param_groups:
            group["lr"] = task.full_rate
    scheduler = task.scheduler(optimizer, spec.epochs)
    losses: list[float] = []
    scores = []
    for epoch in range(spec.epochs):
        train_epoch(task, model, optimizer, epoch=epoch, seed=spec.seed)
        scheduler.step()
        losses.append(evaluate(model, task.loss_fn, task.validation_batches()))
        if epoch >= spec.epochs - SCORED_EPOCHS:
            scores.append(score(task, model))
        on_progress(
            Progress(
                part=part,
                epoch=epoch,
                epochs=spec.epochs,
                loss=losses[-1],
                control_loss=(control_losses or losses)[epoch],
                parameters=count_parameters(model),
            )
        )
    found = {"width": width, "losses": losses, "scores": asdict(mean_scores(scores))}
    folder.write(part, found)
    return found


def width_of_size(task: Task, parameters: int) -> int:
    """Width of the task's host whose size comes nearest, not below the task's own."""
    sizes: dict[int, int] = {}
    for width in count(task.width):
        sizes[width] = count_parameters(task.host(0, width=width))
        if sizes[width] >= parameters:
            break
    return min(sizes, key=lambda width: abs(sizes[width] - parameters))


def train_epoch(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    epoch: int,
    seed: int,
    tamiyo: Tamiyo | None = None,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Train for one epoch; torch's random state is a function of seed and epoch.

    ``around`` makes what each batch is trained inside of, to measure it.
    """
    # So a resumed run draws what it would have drawn.
    torch.manual_seed(seed * 1_000_003 + epoch)
    model.train()
    for batch in task.train_batches(epoch, seed):
        with around():
            optimizer.zero_grad()
            task.loss_fn(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if tamiyo is not None:
                tamiyo.on_batch_end(batch)
