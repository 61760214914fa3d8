"""An MLP grown by gromo 0.1.0, in the environment of ``make bench-peers``: prints its outcome.

``python -m benchmarks.growth.arms.gromo_peer TASK SEED PARAMETERS EPOCHS``. Its ``GrowingMLP`` has
the host's hidden layers, as narrow, with its activation; batches, optimizer and schedule are the
task's. It grows as gromo's tutorial does: statistics over the training data, the optimal neurons of
one layer after another, the best of four scales by the loss on the training data; at the end of
every second epoch, by so much that it has the number of parameters asked for at half of the run; it
finds fewer neurons than it may add, and catches up in the next quarter.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from time import process_time

import torch
from gromo.containers.growing_mlp import GrowingMLP
from torch import nn
from torch.nn import functional as F

from benchmarks.growth.arms.outcome import Outcome
from esper.execution.passes.counterfactual import evaluate
from esper.runs.references import train_epoch
from esper.runs.result import SCORED_EPOCHS, mean_scores, score
from esper.studies.trained.counting import Counting
from esper.tasks import TASKS
from esper.tasks.base import Task

HIDDEN = {"letter": (2, nn.ReLU()), "digits": (3, nn.GELU())}
"""Hidden layers of the task's host, and what is between them."""
SCALES = (0.0, 0.1, 0.5, 1.0)
EVERY = 2


def main(arguments: Sequence[str]) -> None:
    name, *numbers = arguments
    seed, parameters, epochs = map(int, numbers)
    torch.set_num_threads(1)
    task = TASKS.create(name)
    task.load()
    timed = grow(task, seed=seed, parameters=parameters, epochs=epochs)
    with Counting() as counting:
        counted = grow(task, seed=seed, parameters=parameters, epochs=epochs, counting=counting)
    print(json.dumps(asdict(replace(counted, seconds=timed.seconds))))


def grow(
    task: Task, *, seed: int, parameters: int, epochs: int, counting: Counting | None = None
) -> Outcome:
    """Train and grow; evaluations are neither counted nor timed."""
    model = _start(task, seed)
    step, planned = 0, max(epochs // 2 // EVERY, 1)
    optimizer, rates = task.optimizer(model), _rates(task, epochs)
    curve, spent, scores, flops, seconds = [], [], [], 0, 0.0
    for epoch in range(epochs):
        before, started = counting.flops if counting else 0, process_time()
        for group in optimizer.param_groups:
            group["lr"] = rates[epoch]
        train_epoch(task, model, optimizer, epoch=epoch, seed=seed)
        if epoch % EVERY == EVERY - 1 and epoch < max(0.75 * epochs, EVERY):
            share = (parameters - _size(model)) / max(planned - step, 1)
            if _grow_once(task, model, step, share, seed):
                optimizer = task.optimizer(model)  # as the tutorial: new at every size
            step += 1
        seconds += process_time() - started
        flops += (counting.flops if counting else 0) - before
        spent.append(flops)
        curve.append(evaluate(model, task.accuracy_fn, task.validation_batches()))
        if epoch >= epochs - SCORED_EPOCHS:
            scores.append(score(task, model))
    mean = mean_scores(scores)
    return Outcome(
        parameters=_size(model),
        epochs=epochs,
        accuracy=mean.test_accuracy,
        loss=mean.test_loss,
        flops=flops,
        seconds=seconds,
        curve=tuple(curve),
        spent=tuple(spent),
    )


def _start(task: Task, seed: int) -> GrowingMLP:
    inputs, _ = next(iter(task.train_batches(0, seed)))
    classes = task.host(seed)(inputs).shape[1]
    layers, activation = HIDDEN[task.name]
    torch.manual_seed(seed)
    return GrowingMLP(
        in_features=inputs[0].numel(),
        out_features=classes,
        hidden_size=task.width,
        number_hidden_layers=layers,
        activation=activation,
    )


def _rates(task: Task, epochs: int) -> list[float]:
    """Learning rate of each epoch, by the task's schedule."""
    optimizer = task.optimizer(task.host(0))
    scheduler = task.scheduler(optimizer, epochs)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return found


def _grow_once(task: Task, model: GrowingMLP, step: int, room: float, seed: int) -> bool:
    """Add neurons to one layer, in turn, worth at most about ``room`` parameters."""
    index = step % len(model._growable_layers)
    layer = model._growable_layers[index]
    before = layer.previous_module
    each = before.in_features + 1 + layer.out_features
    neurons = round(room / each)
    if neurons < 1:
        return False
    model.eval()
    model.set_growing_layers(index=index)
    model.init_computation()
    for inputs, targets in task.train_batches(step, seed):
        model.zero_grad()
        F.cross_entropy(model(inputs), targets, reduction="sum").backward()  # type: ignore[no-untyped-call]
        model.update_computation()
    model.compute_optimal_updates(maximum_added_neurons=neurons)
    model.reset_computation()
    model.dummy_select_update()
    losses = {scale: _extended_loss(task, model, scale, seed) for scale in SCALES}
    model.set_scaling_factor(min(losses, key=lambda scale: losses[scale]))
    model.apply_change()
    return True


@torch.no_grad()
def _extended_loss(task: Task, model: GrowingMLP, scale: float, seed: int) -> float:
    model.set_scaling_factor(scale)
    losses = [
        F.cross_entropy(model.extended_forward(inputs), targets, reduction="sum")
        for inputs, targets in task.train_batches(0, seed)
    ]
    return float(torch.stack(losses).sum())


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main(sys.argv[1:])
