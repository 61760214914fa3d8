"""Growing by the product itself, twice: once by the clock, once counted."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from time import process_time
from typing import Any

from torch import nn

from benchmarks.growth.arms.outcome import Outcome
from esper.execution.harden import harden
from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.runs import train as product
from esper.runs.result import Progress, Result, Scores, score
from esper.runs.run_folder import RunFolder
from esper.runs.spec import RunSpec
from esper.studies.trained.counting import Counting
from esper.tasks import TASKS
from esper.tasks.base import Task


@dataclass
class _Meter:
    """Readings of a growing sum at the end of each epoch of the grown network.

    ``train`` trains a control too, and says which one's epoch has ended.
    """

    task: Task
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
            assert progress.tamiyo is not None
            self.model = progress.tamiyo.training.model
            held_out = self.task.validation_batches()
            self.curve.append(evaluate(self.model, self.task.accuracy_fn, held_out))
        self._last = self.read()

    @contextmanager
    def without_scoring(self) -> Iterator[None]:
        """Leave out the report's scores and curve, which the other arms are not charged for either.

        The passes of the growth itself, which it decides by, are charged: those of Tamiyo.
        """
        report = {"score": score, "evaluate": evaluate}
        for name, function in report.items():
            assert vars(product)[name] is function
            vars(product)[name] = self._uncharged(function)
        try:
            yield
        finally:
            vars(product).update(report)

    def _uncharged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def called(*args: Any) -> Any:
            before = self.read()
            found = function(*args)
            self._last += self.read() - before
            return found

        return called


@dataclass(frozen=True)
class Grown:
    """A grown network.

    Attributes:
        outcome: Its outcome.
        model: The network at the end, still wrapped.
        control: Scores of the product's own control.
    """

    outcome: Outcome
    model: nn.Module
    control: Scores


def grow(spec: RunSpec) -> Grown:
    """Run ``train``, defaults untouched.

    Raises:
        RuntimeError: if counting changed the result.
    """
    task = TASKS.create(spec.task)
    clock = _Meter(task, process_time)
    timed = _run(spec, clock, nullcontext())
    counting = Counting()
    counter = _Meter(task, lambda: counting.flops)
    counted = _run(spec, counter, counting)
    if timed.grown != counted.grown:
        raise RuntimeError(f"the run ends with {timed.grown}; counted, with {counted.grown}")
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
    return Grown(outcome, clock.model, timed.control)


def _run(spec: RunSpec, meter: _Meter, context: "Counting | nullcontext[None]") -> Result:
    with tempfile.TemporaryDirectory() as folder, context, meter.without_scoring():
        meter.start()
        return product.train(spec, RunFolder(Path(folder)), on_progress=meter)
