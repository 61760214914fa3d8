"""Plain training of a network by the task's recipe: batches, optimizer and schedule of the run."""

from time import process_time

import torch
from torch import nn

from benchmarks.growth.arms.counting import of_an_epoch
from benchmarks.growth.arms.outcome import Outcome
from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.tasks.base import Task


def train_plain(task: Task, model: nn.Module, *, seed: int, epochs: int) -> Outcome:
    """Train as ``esper train`` trains its control, evaluating after each epoch.

    Evaluations count neither as operations nor as time: a static network needs none.
    """
    each = of_an_epoch(task, model)
    optimizer = task.optimizer(model)
    curve, seconds = [], 0.0
    for epoch in range(epochs):
        started = process_time()
        torch.manual_seed(seed * 1_000_003 + epoch)
        model.train()
        for batch in task.train_batches(epoch, seed):
            optimizer.zero_grad()
            task.loss_fn(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds += process_time() - started
        curve.append(evaluate(model, task.accuracy_fn, task.validation_batches()))
    return Outcome(
        parameters=count_parameters(model),
        epochs=epochs,
        accuracy=evaluate(model, task.accuracy_fn, task.test_batches()),
        loss=evaluate(model, task.loss_fn, task.test_batches()),
        flops=each * epochs,
        seconds=seconds,
        curve=tuple(curve),
        spent=tuple(each * (epoch + 1) for epoch in range(epochs)),
    )
