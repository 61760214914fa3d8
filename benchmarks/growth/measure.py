"""One seed of one task: every arm, each trained from the same initial host on the same batches."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.growth.arms.anew import anew
from benchmarks.growth.arms.grown import grow
from benchmarks.growth.arms.outcome import Outcome
from benchmarks.growth.arms.plain import train_plain
from benchmarks.growth.arms.widths import static, static_gated
from benchmarks.growth.kept import ROOT, Arms, Kept
from esper.execution.kernel import count_parameters
from esper.runs.spec import make_spec
from esper.tasks import TASKS

GATED = {"gate", "glu"}
"""Blueprints that multiply: a richer kind of unit than the hosts have."""
PEERS = ROOT / ".venv-peers" / "bin" / "python"
PEER_TASKS = ("letter", "digits")
"""Tasks whose host is the fully connected network that gromo can build and grow."""

Say = Callable[[str], None]
Named = Iterator[tuple[str, Outcome]]
"""Arms and their outcomes, as they are measured."""
Measure = Callable[[str, int], Named]


@dataclass(frozen=True)
class Measuring:
    """Measures seeds, or takes them from the file.

    Attributes:
        kept: File of outcomes.
        say: Reports progress.
        epochs: Length of a run; by default the task's.
    """

    kept: Kept
    say: Say
    epochs: int | None = None

    def all_arms(self, task: str, seed: int) -> Arms:
        """Every arm at the task's default budget; gromo's too, where it fits and is installed."""
        arms = self._once(task, seed, "", self._arms)
        if task in PEER_TASKS and PEERS.exists():
            arms = arms | self._once(task, seed, "gromo", partial(_gromo, arms["grown"]))
        return arms

    def at_budget(self, task: str, seed: int, factor: float) -> Arms:
        """Grown, and static of its size, with a budget of ``factor`` times the host."""
        budget = round(factor * count_parameters(TASKS.create(task).host(seed)))
        return self._once(task, seed, f"budget {factor:g}", partial(self._two_arms, budget))

    def _once(self, task: str, seed: int, what: str, measure: Measure) -> Arms:
        epochs = self.epochs or TASKS.create(task).default_epochs
        key = ", ".join(filter(None, (task, f"seed {seed}", f"{epochs} epochs", what)))
        kept = self.kept.get(key)
        if kept is not None:
            return kept
        self.say(key)
        found = {}
        for arm, outcome in measure(task, seed):
            found[arm] = outcome
            self.say(f"  {_line(arm, outcome)}")
        self.kept.put(key, found)
        return found

    def _two_arms(self, budget: int, name: str, seed: int) -> Named:
        task = TASKS.create(name)
        spec = make_spec(name, seed=seed, epochs=self.epochs, budget=budget, static=False)
        grown = grow(spec).outcome
        yield "grown", grown
        model = static(task, seed, grown.parameters)
        yield "static", train_plain(task, model, seed=seed, epochs=spec.epochs)

    def _arms(self, name: str, seed: int) -> Named:
        task = TASKS.create(name)
        spec = make_spec(name, seed=seed, epochs=self.epochs, static=False)
        plain = partial(train_plain, task, seed=seed)
        grown = grow(spec)
        size, flops = grown.outcome.parameters, grown.outcome.flops
        yield "grown", grown.outcome
        control = plain(task.host(seed), epochs=spec.epochs)
        if control.accuracy != grown.control.test_accuracy:
            raise RuntimeError(f"{name}, seed {seed}: the arms train otherwise than esper train")
        yield "control", control
        wide = plain(static(task, seed, size), epochs=spec.epochs)
        yield "static", wide
        gated = static_gated(task, seed, size) if GATED & set(spec.wrap.seeds) else None
        if gated is not None:
            yield "static, gated", plain(gated, epochs=spec.epochs)
        epochs = max(round(spec.epochs * flops / wide.flops), 1)
        yield "static, equal compute", plain(static(task, seed, size), epochs=epochs)
        again = anew(grown.model, task.host(seed), seed)
        yield "grown, from scratch", plain(again, epochs=spec.epochs)


def _gromo(grown: Outcome, task: str, seed: int) -> Named:
    command = [str(PEERS), "-W", "ignore", "-m", "benchmarks.growth.arms.gromo_peer", task]
    numbers = [str(seed), str(grown.parameters), str(grown.epochs)]
    done = subprocess.run(
        [*command, *numbers], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"gromo failed on {task}, seed {seed}:\n{done.stderr[-2000:]}")
    yield "gromo", Outcome.from_json(json.loads(done.stdout))


def _line(arm: str, outcome: Outcome) -> str:
    return (
        f"{arm} {outcome.accuracy:.2%}, loss {outcome.loss:.4f}, "
        f"{outcome.parameters:,} parameters, {outcome.epochs} epochs, "
        f"{outcome.flops / 1e9:.3g} GFLOP, {outcome.seconds:.1f} s"
    )
