"""Growing by the product itself, twice: once by the clock, once counted."""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time

from torch import nn

from benchmarks.growth.arms.counting import Counting
from benchmarks.growth.arms.outcome import Outcome
from esper.execution.harden import harden
from esper.execution.kernel import count_parameters
from esper.runs.run_folder import RunFolder
from esper.runs.train import Progress, Result, RunSpec, train


@dataclass
class _Meter:
    """Reads a growing sum at the end of each epoch of the grown network.

    ``train`` trains other networks too, and says which one's epoch has ended.
    """

    read: Callable[[], float]
    spent: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    model: nn.Module | None = None
    _last: float = 0.0
    _total: float = 0.0

    def start(self) -> None:
        self._last = self.read()

    def __call__(self, progress: Progress) -> None:
        now = self.read()
        if progress.part == "grown":
            self._total += now - self._last
            self.spent.append(self._total)
            assert progress.report is not None
            assert progress.tamiyo is not None
            self.curve.append(progress.report.holdout_accuracy or 0.0)
            self.model = progress.tamiyo.training.model
        self._last = self.read()


def grow(spec: RunSpec) -> tuple[Outcome, nn.Module]:
    """Outcome of the run, and the grown model, still wrapped.

    Raises:
        RuntimeError: if counting changed the result.
    """
    clock = _Meter(process_time)
    timed = _run(spec, clock, nullcontext())
    counting = Counting()
    counter = _Meter(lambda: counting.flops)
    counted = _run(spec, counter, counting)
    if timed.grown != counted.grown:
        raise RuntimeError(f"counted, the run ends with {counted.grown}; not, {timed.grown}")
    assert clock.model is not None
    outcome = Outcome(
        parameters=count_parameters(harden(clock.model)),
        epochs=spec.epochs,
        accuracy=timed.grown.test_accuracy,
        loss=timed.grown.test_loss,
        flops=int(counter.spent[-1]),
        seconds=clock.spent[-1],
        curve=tuple(clock.curve),
        spent=tuple(map(int, counter.spent)),
        kept=tuple(graft.blueprint for graft in timed.grafts if graft.kept),
        judged=len(timed.grafts),
    )
    return outcome, clock.model


def _run(spec: RunSpec, meter: _Meter, context: "Counting | nullcontext[None]") -> Result:
    with tempfile.TemporaryDirectory() as folder, context:
        meter.start()
        return train(spec, RunFolder(Path(folder)), on_progress=meter)
