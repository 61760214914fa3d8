"""Progress of a run: a live view in a terminal, a line now and then in a log."""

from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from shlex import quote
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from esper.cli.signs import seed_sign, states_legend
from esper.cli.tables import counted, percent
from esper.contracts.config import chosen_by
from esper.contracts.seeds import SeedState, seed_name
from esper.contracts.selection import Decision
from esper.runs.result import Progress, networks
from esper.runs.spec import RunSpec
from esper.services.tamiyo.report import EpochReport, Step, Verdict
from esper.services.tamiyo.tamiyo import Tamiyo

_NAMES = {
    "control": "control",
    "grown": "grown network",
    "static": "static network",
    "full": "host trained in full",
}
"""Parts of a run, and their names in a sentence."""


class Watch(ABC):
    """Display of a run; called with its progress at the end of every epoch.

    Args:
        spec: Settings of the run.
        name: Name of the run.
        console: Console of the display.
    """

    def __init__(self, spec: RunSpec, name: str, console: Console) -> None:
        self.spec = spec
        self.name = name
        self.console = console
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Display the end of an epoch."""
        self.last = progress
        self.show(progress)

    @abstractmethod
    def showing(self) -> AbstractContextManager[object]:
        """Context in which the run is displayed."""

    @abstractmethod
    def show(self, progress: Progress) -> None:
        """Display the progress."""

    @property
    def where(self) -> str:
        """Number of the epochs done, in words."""
        if self.last is None:
            return "before its first epoch"
        part = "" if self.last.part == "grown" else f" of the {_NAMES[self.last.part]}"
        return f"after {self.last.epoch + 1} of {counted(self.last.epochs, 'epoch')}{part}"


def watch(spec: RunSpec, name: str, console: Console, *, kept: Counter[tuple[str, int]]) -> Watch:
    """Make the live view where the console can show it, plain lines elsewhere.

    Args:
        spec: Settings of the run.
        name: Name of the run.
        console: Console of the display.
        kept: Kernels kept so far by layer and seed: of a resumed run.
    """
    if console.is_interactive:
        return LiveView(spec, name, console, kept=kept)
    return Lines(spec, name, console)


@final
class Lines(Watch):
    """One line for an epoch in which something happened; for logs and pipes."""

    @override
    def showing(self) -> AbstractContextManager[object]:
        return nullcontext()

    @override
    def show(self, progress: Progress) -> None:
        report = progress.report
        if report is None:
            if progress.epoch == progress.epochs - 1:
                self._say(
                    f"{progress.part}: {counted(progress.epochs, 'epoch')}, held-out loss "
                    f"{progress.loss:.4f} with {progress.parameters:,} parameters"
                )
            return
        changes = [text for step in report.steps if (text := _change(step, report))]
        if changes:
            self._say(
                f"epoch {report.epoch}: held-out loss {report.holdout_loss:.4f}, control "
                f"{progress.control_loss:.4f}, {report.used:,}/{report.budget:,} parameters: "
                + "; ".join(changes)
            )

    def _say(self, text: str) -> None:
        self.console.print(Text(f"{self.name} {text}"), soft_wrap=True)


@final
class LiveView(Watch):
    """Bars, losses, and every seed in the colour of its state."""

    def __init__(
        self, spec: RunSpec, name: str, console: Console, *, kept: Counter[tuple[str, int]]
    ) -> None:
        super().__init__(spec, name, console)
        self._kept = Counter(kept)
        self._decided: tuple[Decision, str] | None = None
        self._grown: tuple[EpochReport, Tamiyo] | None = None
        self._bars = Bars(
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            TextColumn("{task.completed} of {task.total} epochs done"),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            console=console,
            expand=True,
        )
        self._parts = {
            part: self._bars.add_task(
                part, total=spec.epochs, start=False, loss=_loss(None), visible=part == "control"
            )
            for part in _NAMES
        }
        self._live = Live(
            get_renderable=self.render, console=console, refresh_per_second=4, transient=True
        )

    @override
    def showing(self) -> AbstractContextManager[object]:
        self._bars.start_task(self._parts["control"])
        return self._live

    @override
    def show(self, progress: Progress) -> None:
        report, done = progress.report, progress.epoch + 1
        self._advance("control", progress.epochs, progress.control_loss)
        self._advance(progress.part, done, progress.loss)
        if done == progress.epochs and (later := self._next(progress.part)):
            self._bars.start_task(self._parts[later])
            self._bars.update(self._parts[later], visible=True)
        if report is None or progress.tamiyo is None:
            return
        self._grown = report, progress.tamiyo
        for verdict in report.verdicts:
            self._kept[verdict.layer_name, verdict.seed_idx] += verdict.kept
        if report.decision is not None:
            self._decided = report.decision, report.reason
        self._live.refresh()

    def _advance(self, part: str, done: int, loss: float | None) -> None:
        bar = self._parts[part]
        if not self._bars.tasks[bar].started:
            self._bars.start_task(bar)
        self._bars.update(bar, completed=done, loss=_loss(loss), visible=True)

    def _next(self, part: str) -> str:
        """Part of the run that comes after this one; empty after the last."""
        return dict(pairwise(networks(self.spec.task, static=self.spec.static))).get(part, "")

    def render(self) -> RenderableType:
        """Render the view."""
        head = Text.assemble(
            (f"{self.spec.task}", "bold"),
            f", seed {self.spec.seed}, {chosen_by(self.spec.config.model_dump())}",
            (f"   Ctrl-C stops; esper train --resume {quote(self.name)} goes on", "dim"),
            overflow="ellipsis",
            no_wrap=True,
        )
        parts: list[RenderableType] = [head, self._bars]
        if self._grown is not None:
            report, tamiyo = self._grown
            parts += [
                self._budget(report),
                Text(),
                self._seeds(tamiyo),
                states_legend(),
                Text(),
                *self._decision(report),
            ]
        return Group(*parts)

    def _budget(self, report: EpochReport) -> RenderableType:
        accuracy = report.holdout_accuracy
        return Text.assemble(
            f"grown {report.used:,} of {report.budget:,} parameters",
            f", {sum(self._kept.values())} kernels kept",
            "" if accuracy is None else f", held-out accuracy {percent(accuracy)}",
        )

    def _seeds(self, tamiyo: Tamiyo) -> RenderableType:
        made = Table.grid(padding=(0, 2))
        most = max(len(layer.seed_states) for layer in tamiyo.layers.values())
        made.add_row("layer", *[f"seed {index}" for index in range(most)], style="dim")
        for name, layer in tamiyo.layers.items():
            slots = enumerate(zip(layer.seed_states, layer.seed_blueprints, strict=True))
            signs = [
                seed_sign(state, blueprint, self._kept[name, index])
                for index, (state, blueprint) in slots
            ]
            made.add_row(Text(name, style="bold"), *signs)
        return made

    def _decision(self, report: EpochReport) -> list[RenderableType]:
        now = Text(f"now   {report.reason}", style="dim")
        if self._decided is None:
            return [now]
        decision, where = self._decided
        seed = seed_name(decision.layer_name, decision.seed_idx, decision.blueprint)
        lines = [
            Text(f"chose {seed} at the end of epoch {decision.epoch}: {decision.reason.reason}"),
            Text(f"where {where}"),
        ]
        return [*lines, now] if report.reason != where else [*lines]


def _loss(value: float | None) -> str:
    return "loss   -   " if value is None else f"loss {value:.4f}"


def _change(step: Step, report: EpochReport) -> str:
    """Change of state that belongs in a log, in words; empty for the others."""
    seed = seed_name(step.layer_name, step.seed_idx, step.blueprint)
    if step.new == SeedState.GERMINATED:
        for decision in report.decisions:
            if (decision.layer_name, decision.seed_idx) == (step.layer_name, step.seed_idx):
                return f"chose {seed}: {decision.reason.reason}"
    if step.new == SeedState.BLENDING:
        return f"{seed} blending"
    if step.new in {SeedState.FOSSILIZED, SeedState.CULLED}:
        for verdict in report.verdicts:
            if (verdict.layer_name, verdict.seed_idx) == (step.layer_name, step.seed_idx):
                return f"{seed} {'kept' if verdict.kept else 'culled'} ({_reward(verdict)})"
    return ""


def _reward(verdict: Verdict) -> str:
    if verdict.reward is None or verdict.stderr is None:
        return verdict.why
    return f"{verdict.reward:+.4f} ± {verdict.stderr:.4f}"
