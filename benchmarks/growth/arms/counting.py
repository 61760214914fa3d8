"""Counted operations of a plain epoch."""

from collections import Counter
from copy import deepcopy

import torch
from torch import nn

from esper.studies.trained.counting import Counting
from esper.tasks.base import Batch, Task


def of_an_epoch(task: Task, model: nn.Module) -> int:
    """Count an epoch of plain training from one step for each size of batch; exact.

    What a step costs depends on shapes alone. The model is left as it is.
    """
    sizes = Counter(len(batch[0]) for batch in task.train_batches(0, 0))
    first: dict[int, Batch] = {}
    for batch in task.train_batches(0, 0):
        first.setdefault(len(batch[0]), batch)
    total = 0
    for size, batch in first.items():
        copy = deepcopy(model).train()
        # What dropout draws is of no account; the user's random state is.
        with torch.random.fork_rng(devices=[]), Counting() as counting:
            task.loss_fn(copy, batch).mean().backward()  # type: ignore[no-untyped-call]
        total += sizes[size] * counting.flops
    return total
