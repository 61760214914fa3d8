"""Counting of floating-point operations: matrix products, convolutions and attention.

A multiplication and its addition are two, as in ``torch.utils.flop_counter``, whose formulas these
are; elementwise operations and optimizers are not counted. The counter of PyTorch, which also keeps
a table by module, gives the same sum and takes two and a half times as long.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

_EVERY = 8
"""Of so many batches alike, one is counted: counting takes longer than training."""


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


@final
class Meter:
    """Operations of a training, epoch by epoch, estimated from a sample of its batches.

    Within an epoch what a batch costs depends on its size and on whether a probe follows it. So one
    of eight batches is counted, each one that is probed, and everything at the end of an epoch.

    Args:
        probe_every: Batches between two probes; 0 for a plain loop.

    Attributes:
        flops: Operations of each epoch that has ended.
    """

    def __init__(self, probe_every: int = 0) -> None:
        self.flops: list[int] = []
        self._probe_every = probe_every
        self._counting = Counting()
        self._batches = 0
        self._begin()

    def _begin(self) -> None:
        self._whole = self._sampled = self._alike = self._samples = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One batch, from the forward pass to what Tamiyo makes of it."""
        self._batches += 1
        if self._probe_every and not self._batches % self._probe_every:
            with self._counted() as spent:
                yield
            self._whole += spent()
            return
        self._alike += 1
        if (self._alike - 1) % _EVERY:
            yield
            return
        with self._counted() as spent:
            yield
        self._sampled += spent()
        self._samples += 1

    @contextmanager
    def epoch_end(self) -> Iterator[None]:
        """What is done between two epochs; ends the epoch."""
        with self._counted() as spent:
            yield
        alike = self._sampled * self._alike // self._samples if self._samples else 0
        self.flops.append(self._whole + alike + spent())
        self._begin()

    @contextmanager
    def _counted(self) -> Iterator[Any]:
        before = self._counting.flops
        with self._counting:
            yield lambda: self._counting.flops - before
