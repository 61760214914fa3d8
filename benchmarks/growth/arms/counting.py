"""Counting of floating-point operations: matrix products, convolutions and attention.

A multiplication and its addition are two, as in ``torch.utils.flop_counter``, whose formulas these
are; elementwise operations and optimizers are not counted. The counter of PyTorch, which also keeps
a table by module, gives the same sum and takes two and a half times as long.
"""

from collections import Counter
from copy import deepcopy
from typing import Any, final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

from esper.tasks.base import Batch, Task


@final
class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count what runs inside, forward and backward; no value changes.

    Attributes:
        flops: Operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


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
