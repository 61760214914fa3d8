"""Plain training of a network by the task's recipe: batches, optimizer and schedule of the run."""

from time import process_time

from torch import nn

from benchmarks.growth.arms.counting import of_an_epoch
from benchmarks.growth.arms.outcome import Outcome
from esper.execution.passes.counterfactual import evaluate
from esper.runs.references import train_epoch
from esper.runs.result import SCORED_EPOCHS, mean_scores, score
from esper.tasks.base import Task


def train_plain(task: Task, model: nn.Module, *, seed: int, epochs: int) -> Outcome:
    """Train as ``esper train`` trains its control, evaluating after each epoch.

    Evaluations count neither as operations nor as time: a static network needs none.
    """
    each = of_an_epoch(task, model)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, epochs)
    curve, scores, seconds = [], [], 0.0
    for epoch in range(epochs):
        started = process_time()
        train_epoch(task, model, optimizer, epoch=epoch, seed=seed)
        scheduler.step()
        seconds += process_time() - started
        curve.append(evaluate(model, task.accuracy_fn, task.validation_batches()))
        if epoch >= epochs - SCORED_EPOCHS:
            scores.append(score(task, model))
    mean = mean_scores(scores)
    return Outcome(
        parameters=mean.parameters,
        epochs=epochs,
        accuracy=mean.test_accuracy,
        loss=mean.test_loss,
        flops=each * epochs,
        seconds=seconds,
        curve=tuple(curve),
        spent=tuple(each * (epoch + 1) for epoch in range(epochs)),
    )
