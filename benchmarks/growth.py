"""Test accuracy of un-grown control, grown network, and static network of the grown one's size.

Paired: all three share the seed (initial weights as far as shapes agree, batches, epochs). Five
seeds of each task; test data decided nothing. Takes a quarter of an hour, so ``make bench`` leaves
it out.
"""

import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np

from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.runs.run_folder import RunFolder
from esper.runs.train import make_spec, train
from esper.tasks import TASKS
from esper.tasks.base import Task

SEEDS = range(5)


def rows() -> list[tuple[str, str, str]]:
    """Means over seeds, differences with bootstrap 95 % intervals."""
    found = []
    for name in TASKS.names():
        for row in _task(name):
            print(*row, sep=" | ", file=sys.stderr, flush=True)  # a quarter of an hour is long
            found.append(row)
    return found


def _task(name: str) -> list[tuple[str, str, str]]:
    task = TASKS.create(name)
    control, grown, static, kept, judged, sizes = [], [], [], 0, 0, []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            spec = make_spec(name, seed=seed)
            result = train(spec, RunFolder(Path(folder)), on_progress=lambda _: None)
        control.append(100 * result.control.test_accuracy)
        grown.append(100 * result.grown.test_accuracy)
        static.append(_static(task, seed, result.grown.parameters, spec.epochs))
        kept += sum(graft.kept for graft in result.grafts)
        judged += len(result.grafts)
        sizes.append(result.grown.parameters)
    return [
        (
            f"{name}: test accuracy, control / grown / static of the grown one's size",
            f"{mean(control):.1f} / {mean(grown):.1f} / {mean(static):.1f} %",
            f"{mean(sizes):.0f} parameters grown; {kept} of {judged} grafts kept",
        ),
        (f"{name}: grown less control", _difference(grown, control), "> 0"),
        (f"{name}: grown less static", _difference(grown, static), "about 0 at best"),
    ]


def _static(task: Task, seed: int, parameters: int, epochs: int) -> float:
    """Test accuracy in percent of the host whose width comes nearest to a number of parameters."""
    sizes = {w: count_parameters(task.host(seed, width=w)) for w in range(task.width, 64)}
    width = min(sizes, key=lambda w: abs(sizes[w] - parameters))
    model = task.host(seed, width=width)
    optimizer = task.optimizer(model)
    for epoch in range(epochs):
        for batch in task.train_batches(epoch, seed):
            optimizer.zero_grad()
            task.loss_fn(model, batch).mean().backward()
            optimizer.step()
    return 100 * evaluate(model, task.accuracy_fn, task.test_batches())


def _difference(ours: list[float], theirs: list[float]) -> str:
    pairs = np.subtract(ours, theirs)
    draws = np.random.default_rng(0).choice(pairs, size=(10_000, len(pairs))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{pairs.mean():+.1f} points [{low:+.1f}, {high:+.1f}]"
