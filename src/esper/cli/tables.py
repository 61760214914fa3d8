"""Tables and words for a person: how states, grafts, runs and results look in a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from esper.contracts.seeds import SeedState
from esper.runs.run_reader import Run, Summary
from esper.runs.store_address import without_password

STATES: Mapping[str, tuple[str, str]] = {
    SeedState.DORMANT: ("·", "dim"),
    SeedState.GERMINATED: ("○", "cyan"),
    SeedState.TRAINING: ("◔", "cyan"),
    SeedState.BLENDING: ("◑", "yellow"),
    SeedState.HOLDING: ("◕", "yellow"),
    SeedState.FOSSILIZED: ("●", "green"),
    SeedState.CULLED: ("✕", "red"),
}
"""Sign and colour of every state; the sign alone is enough where there are no colours."""


_RUN_STATES = {"finished": "green", "running": "cyan", "interrupted": "yellow"}


def out() -> Console:
    """What a command is asked for goes here."""
    return Console(highlight=False)


def err() -> Console:
    """What happens on the way goes here."""
    return Console(stderr=True, highlight=False)


def seed_sign(state: str, text: str, kept: int = 0) -> Text:
    """A seed in its colour: ``◑ glu``, and how many of its kernels the layer has kept."""
    sign, style = STATES[state]
    label = Text(f"{sign} {text}", style=style)
    return label.append(f" +{kept}", style="green") if kept else label


def legend() -> Text:
    """What the signs stand for."""
    text = Text("  ")
    for state in (s for s in STATES if s not in {SeedState.GERMINATED, SeedState.HOLDING}):
        sign, style = STATES[state]
        text.append(f"{sign} {'kept' if state == SeedState.FOSSILIZED else state}  ", style=style)
    return text.append("+1 kernels kept", style="green")


def number(value: float | None, form: str = ",d") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def percent(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{value * 100:.1f} %"


def table(*columns: str, right: Iterable[str] = (), title: str = "") -> Table:
    """An open table; the columns in ``right`` hold numbers."""
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
        title=title or None,
        title_justify="left",
        title_style="bold",
    )
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def grafts_table(grafts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Every graft that was judged: what grew where, what it earned, whether it stays and why."""
    if not grafts:
        return Text("No graft was judged.")
    made = table(
        "epoch",
        "layer:seed",
        "blueprint",
        "param.",
        "reward ± s.e.",
        "verdict",
        right=("epoch", "param.", "reward ± s.e."),
        title="Grafts (reward: held-out loss that the kernel removes, in nats)",
    )
    for graft in grafts:
        word, style = ("kept", "green") if graft["kept"] else ("culled", "red")
        made.add_row(
            str(graft["epoch"]),
            f"{graft['layer_name']}:{graft['seed_idx']}",
            graft["blueprint"],
            f"{graft['parameters']:,}",
            _with_error(graft["reward"], graft["stderr"]),
            Text.assemble((word, style), f": {_short(graft['why'])}"),
        )
    return made


def comparison(result: Mapping[str, Any]) -> RenderableType:
    """The grown network beside the control that never grew."""
    made = table(
        "",
        "parameters",
        "val. loss",
        "val. acc.",
        "test loss",
        "test acc.",
        right=("parameters", "val. loss", "val. acc.", "test loss", "test acc."),
        title="Grown against the un-grown control (loss in nats)",
    )
    control, grown = result["control"], result["grown"]
    for name, row in (("control", control), ("grown", grown)):
        made.add_row(
            name,
            f"{row['parameters']:,}",
            f"{row['validation_loss']:.4f}",
            percent(row["validation_accuracy"]),
            f"{row['test_loss']:.4f}",
            percent(row["test_accuracy"]),
            style="bold" if name == "grown" else "",
        )
    made.add_row(
        "difference",
        f"{grown['parameters'] - control['parameters']:+,}",
        *(
            _difference(grown[key] - control[key], loss="loss" in key)
            for key in ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
        ),
    )
    return made


def result(run: Run) -> RenderableType:
    """What came of a run that has ended."""
    if run.result is None:
        return Text("")
    found = run.result
    kept = sum(graft["kept"] for graft in found["grafts"])
    cut_short = f", {found['under_way']} cut short by the end" if found["under_way"] else ""
    return Group(
        grafts_table(found["grafts"]),
        Text(
            f"{kept} of {len(found['grafts'])} grafts kept{cut_short}; "
            f"{found['used']:,} of {found['budget']:,} parameters grown"
        ),
        Text(),
        comparison(found),
    )


def spec(run: Run) -> RenderableType:
    """What was asked for."""
    asked = run.spec
    growth = asked["config"]["growth"]
    store = without_password(asked["store"])
    rows = (
        ("task", asked["task"]),
        ("seed", str(asked["seed"])),
        ("strategy", run.strategy),
        ("epochs", str(asked["epochs"])),
        ("budget", f"{growth['budget']:,} parameters"),
        ("event log", f"{store}, as {asked['run']}" if store else "in the run's folder"),
        ("folder", str(run.folder.path)),
    )
    made = Table.grid(padding=(0, 2))
    for name, value in rows:
        made.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    return made


def refusals_table(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Grafts that were asked for and did not come about."""
    if not found:
        return Text("No graft was refused.")
    made = table("epoch", "layer", "why", right=("epoch",), title="Refusals")
    for refusal in found:
        made.add_row(str(refusal["epoch"]), refusal["layer"], refusal["reason"])
    return made


def runs_table(found: Sequence[Summary]) -> RenderableType:
    """One line for each run."""
    right = ("seed", "epochs", "kept", "control", "grown")
    columns = ("run", "task", "seed", "strategy", "epochs", "state", "kept", "control", "grown")
    made = table(*columns, right=right)
    for run in found:
        if run.problem:
            continue
        made.add_row(
            run.run,
            run.task,
            str(run.seed),
            run.strategy,
            f"{number(run.epochs_done)}/{number(run.epochs)}",
            Text(run.state, _RUN_STATES[run.state]),
            f"{number(run.kept)}/{number(run.judged)}",
            percent(run.control_test_accuracy),
            percent(run.grown_test_accuracy),
        )
    note = Text("kept: of the grafts judged; control, grown: test accuracy", style="dim")
    problems = [Text(f"{run.run}: {run.problem}", style="red") for run in found if run.problem]
    return Group(made, note, *problems)


def _with_error(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "not judged"
    return f"{value:+.4f} ± {number(stderr, '.4f')}"


def _short(why: str) -> str:
    # "worth +0.2075 ± 0.0214 of held-out loss: more than 2 standard errors": the numbers stand
    # in a column of their own.
    _, colon, after = why.partition(" of held-out loss: ")
    short = (after if colon else why).replace("standard errors", "s.e.")
    return short.replace("not more than", "≤").replace("more than", ">")


def _difference(value: float, *, loss: bool) -> Text:
    better = value < 0 if loss else value > 0
    text = f"{value:+.4f}" if loss else f"{value * 100:+.1f} pt"
    return Text(text, style="green" if better else "red" if value else "")
