"""A run as it goes: a live view in a terminal, a line now and then in a log."""

from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from esper.cli import show
from esper.contracts.config import chosen_by
from esper.contracts.selection import Decision
from esper.runs.train import Progress, RunSpec
from esper.services.tamiyo.report import EpochReport, Step, Verdict
from esper.services.tamiyo.tamiyo import Tamiyo


class Watch(ABC):
    """Shows a run while it goes; call it at the end of every epoch.

    Args:
        spec: What the run was asked for.
        name: The run's name.
        console: Where it is shown.
    """

    def __init__(self, spec: RunSpec, name: str, console: Console) -> None:
        self.spec = spec
        self.name = name
        self.console = console
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Take note of the end of an epoch, and show it."""
        self.last = progress
        self.show(progress)

    @abstractmethod
    def showing(self) -> AbstractContextManager[object]:
        """While this is entered, the run is shown."""

    @abstractmethod
    def show(self, progress: Progress) -> None:
        """Show where the run stands."""

    @property
    def where(self) -> str:
        """How far the run came, in words."""
        if self.last is None:
            return "before its first epoch"
        of_what = "" if self.last.part == "grown" else " of the control"
        return f"after {self.last.epoch + 1} of {self.last.epochs} epochs{of_what}"


def watch(spec: RunSpec, name: str, console: Console, *, kept: Counter[tuple[str, int]]) -> Watch:
    """The live view where the console can show it, plain lines elsewhere.

    Args:
        spec: What the run was asked for.
        name: The run's name.
        console: Where it is shown.
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
                    f"control: {progress.epochs} epochs, held-out loss {progress.control_loss:.4f}"
                )
            return
        steps = [text for step in report.steps if (text := _step(step, report.verdicts))]
        if report.decision is not None:
            steps.append(f"chose {_seed(report.decision)} ({report.decision.reason.reason})")
        if steps:
            self._say(
                f"epoch {report.epoch}: held-out loss {report.holdout_loss:.4f}, control "
                f"{progress.control_loss:.4f}, {report.used:,}/{report.budget:,} parameters: "
                + "; ".join(steps)
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
        self._bars = Bars(
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            console=console,
            expand=True,
        )
        total = spec.epochs
        self._control = self._bars.add_task("control", total=total, start=False, loss=_loss(None))
        self._grown = self._bars.add_task(
            "grown", total=total, start=False, visible=False, loss=_loss(None)
        )
        self._live = Live(
            get_renderable=self.render, console=console, refresh_per_second=4, transient=True
        )

    @override
    def showing(self) -> AbstractContextManager[object]:
        self._bars.start_task(self._control)
        return self._live

    @override
    def show(self, progress: Progress) -> None:
        done = progress.epoch + 1
        if progress.report is None:
            loss = _loss(progress.control_loss)
            self._bars.update(self._control, completed=done, loss=loss)
            if done == progress.epochs:
                self._start_grown()
            return
        self._start_grown()
        total = progress.epochs
        self._bars.update(self._control, completed=total, loss=_loss(progress.control_loss))
        self._bars.update(self._grown, completed=done, loss=_loss(progress.report.holdout_loss))
        for verdict in progress.report.verdicts:
            self._kept[verdict.layer_name, verdict.seed_idx] += verdict.kept
        if progress.report.decision is not None:
            self._decided = progress.report.decision, progress.report.reason
        self._live.refresh()

    def render(self) -> RenderableType:
        """The view as it is now."""
        head = Text.assemble(
            (f"{self.spec.task}", "bold"),
            f", seed {self.spec.seed}, {chosen_by(self.spec.config.model_dump())}",
            (f"   Ctrl-C stops; esper train --resume {self.name} goes on", "dim"),
            overflow="ellipsis",
            no_wrap=True,
        )
        parts: list[RenderableType] = [head, self._bars]
        if self.last is not None and self.last.report is not None and self.last.tamiyo is not None:
            report = self.last.report
            parts += [
                self._budget(report),
                Text(),
                self._seeds(self.last.tamiyo),
                show.legend(),
                Text(),
                *self._decision(report),
            ]
        return Group(*parts)

    def _start_grown(self) -> None:
        if not self._bars.tasks[self._grown].started:
            self._bars.start_task(self._grown)
            self._bars.update(self._grown, visible=True)

    def _budget(self, report: EpochReport) -> RenderableType:
        accuracy = report.holdout_accuracy
        return Text.assemble(
            f"grown {report.used:,} of {report.budget:,} parameters",
            f", {sum(self._kept.values())} kernels kept",
            "" if accuracy is None else f", held-out accuracy {show.percent(accuracy)}",
        )

    def _seeds(self, tamiyo: Tamiyo) -> RenderableType:
        made = Table.grid(padding=(0, 2))
        for name, layer in tamiyo.layers.items():
            slots = enumerate(zip(layer.seed_states, layer.seed_blueprints, strict=True))
            signs = [
                show.seed_sign(state, blueprint or str(index), self._kept[name, index])
                for index, (state, blueprint) in slots
            ]
            made.add_row(Text(name, style="bold"), *signs)
        return made

    def _decision(self, report: EpochReport) -> list[RenderableType]:
        now = Text(f"now   {report.reason}", style="dim")
        if self._decided is None:
            return [now]
        decision, where = self._decided
        lines = [
            Text(f"chose {_seed(decision)} at epoch {decision.epoch}: {decision.reason.reason}"),
            Text(f"where {where}"),
        ]
        return [*lines, now] if report.reason != where else [*lines]


def _loss(value: float | None) -> str:
    return "loss   -   " if value is None else f"loss {value:.4f}"


def _seed(decision: Decision) -> str:
    blueprint = f" {decision.blueprint}" if decision.blueprint else ""
    return f"{decision.layer_name}:{decision.seed_idx}{blueprint}"


def _step(step: Step, verdicts: tuple[Verdict, ...]) -> str:
    """A change of state that belongs in a log; germination and waking are left out."""
    seed = f"{step.layer_name}:{step.seed_idx} {step.blueprint}"
    if step.new in {"blending", "training"}:
        return f"{seed} {step.new}"
    for verdict in verdicts:
        if (verdict.layer_name, verdict.seed_idx) == (step.layer_name, step.seed_idx) and (
            step.new in {"fossilized", "culled"}
        ):
            earned = _earned(verdict)
            return f"{seed} {'kept' if verdict.kept else 'culled'} ({earned})"
    return ""


def _earned(verdict: Verdict) -> str:
    if verdict.reward is None or verdict.stderr is None:
        return verdict.why
    return f"{verdict.reward:+.4f} ± {verdict.stderr:.4f}"
