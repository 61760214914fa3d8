"""Tables of runs, grafts and seeds in a terminal; consoles and numbers."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from esper.cli.errors import escaping_console
from esper.cli.signs import seed_sign, states_legend
from esper.runs.own_runs import OwnRun
from esper.runs.placebos import Placebos
from esper.runs.run_reader import Run, RunSummary
from esper.services.tamiyo.preview import SeedPreview
from esper.stores.addresses import shown

_RUN_STATES = {"finished": "green", "running": "cyan", "interrupted": "yellow"}

_LATEST = 20
"""Choices that are shown; --json has all."""


def out() -> Console:
    """Console for results."""
    return escaping_console(highlight=False)


def err() -> Console:
    """Console for progress and notes."""
    return escaping_console(stderr=True, highlight=False)


def note(text: str, style: str = "") -> None:
    """Print a line on stderr."""
    err().print(Text(text, style=style), soft_wrap=True)


def print_json(document: object) -> None:
    """Print a JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2))


def heading(text: str) -> Text:
    """Text of a heading."""
    return Text(text, style="bold")


def legend(text: str) -> Text:
    """Text below a table that explains its columns and signs."""
    return Text(text, style="dim")


def counted(count: int, noun: str) -> str:
    """Number of things, in words.

    Example:
        >>> counted(1, "epoch"), counted(2_000, "epoch")
        ('1 epoch', '2,000 epochs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float | None, form: str = ",d") -> str:
    """Number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def percent(value: float | None) -> str:
    """Share in percent, or a dash where there is none."""
    return "-" if value is None else f"{value * 100:.1f} %"


def table(*columns: str, right: Iterable[str] = (), title: str = "") -> Table:
    """Empty table; the columns in ``right`` hold numbers."""
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
    """Table of the grafts that were judged: seed, size, reward and verdict."""
    if not grafts:
        return Text("No graft was judged.")
    columns = ("epoch", "layer", "seed", "blueprint", "param.", "reward ± s.e.", "verdict")
    right = ("epoch", "seed", "param.", "reward ± s.e.")
    made = table(*columns, right=right, title="Grafts")
    for graft in grafts:
        word, style = ("kept", "green") if graft["kept"] else ("culled", "red")
        reward, stderr = graft["reward"], number(graft["stderr"], ".4f")
        made.add_row(
            str(graft["epoch"]),
            graft["layer_name"],
            str(graft["seed_idx"]),
            graft["blueprint"],
            f"{graft['parameters']:,}",
            "not judged" if reward is None else f"{reward:+.4f} ± {stderr}",
            Text.assemble((word, style), f": {_short(graft['why'])}"),
        )
    note = (
        "epoch: at whose end the graft was judged, from 0; reward: held-out loss that the kernel "
        "removes, in nats, with its standard error (s.e.)"
    )
    return Group(made, legend(note))


def result(found: Mapping[str, Any]) -> RenderableType:
    """Tables of a run that has ended: its grafts, and the grown network beside the others."""
    kept = sum(graft["kept"] for graft in found["grafts"])
    cut_short = f", {found['under_way']} cut short by the end" if found["under_way"] else ""
    return Group(
        grafts_table(found["grafts"]),
        Text(
            f"{kept} of {len(found['grafts'])} grafts kept{cut_short}; "
            f"{found['used']:,} of {found['budget']:,} parameters grown"
        ),
        Text(),
        _comparison(found),
    )


def _comparison(found: Mapping[str, Any]) -> RenderableType:
    measures = {
        "val. loss": "validation_loss",
        "val. acc.": "validation_accuracy",
        "test loss": "test_loss",
        "test acc.": "test_accuracy",
    }
    columns = ("parameters", *measures)
    title = "Grown network beside networks that do not grow (loss in nats)"
    made = table("", *columns, right=columns, title=title)
    rows = {name: found[name] for name in ("control", "static", "full", "grown") if found.get(name)}
    for name, row in rows.items():
        made.add_row(
            name,
            f"{row['parameters']:,}",
            *[
                f"{row[key]:.4f}" if key.endswith("loss") else percent(row[key])
                for key in measures.values()
            ],
            style="bold" if name == "grown" else "",
        )
    grown = rows.pop("grown")
    for name, row in rows.items():
        made.add_row(
            f"less {name}",
            f"{grown['parameters'] - row['parameters']:+,}",
            *[_difference(key, grown[key] - row[key]) for key in measures.values()],
        )
    static = "; static: of the grown one's size from the beginning" if "static" in rows else ""
    static += "; full: the host, trained in full at a rate of its own" if "full" in rows else ""
    note = f"control: the host, un-grown{static}; less: grown less that one. All train alike"
    return Group(made, legend(f"{note}. {_scored(found)}"))


def _scored(found: Mapping[str, Any]) -> str:
    epochs = found.get("scored_epochs", 1)
    if epochs == 1:
        return "Scores are those after the last epoch"
    return f"Scores are means over the evaluations after the last {epochs} epochs"


def spec(run: Run) -> RenderableType:
    """Settings of a run."""
    of_run = run.spec
    store = shown(of_run["store"])
    made = Table.grid(padding=(0, 2))
    for name, value in (
        ("task", of_run["task"]),
        ("seed", str(of_run["seed"])),
        ("strategy", run.strategy),
        ("epochs", str(of_run["epochs"])),
        ("budget", f"{of_run['config']['growth']['budget']:,} parameters"),
        ("event log", f"{store}, as {of_run['run']}" if store else "in the run's folder"),
        ("folder", str(run.folder.path)),
    ):
        made.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    return made


def placebos(found: Placebos) -> list[RenderableType]:
    """Sentence on the placebos, if any were judged; red if too many would have been kept."""
    style = "red" if found.too_many else ""
    return [Text(f"{found.text().capitalize()}.", style=style)] if found else []


def refusals_table(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Table of the grafts that were requested and refused."""
    if not found:
        return Text("No graft was refused.")
    made = table("epoch", "layer", "why", right=("epoch",), title="Refusals")
    for refusal in found:
        made.add_row(str(refusal["epoch"]), refusal["layer"], refusal["reason"])
    return made


def runs_table(found: Sequence[RunSummary]) -> RenderableType:
    """Table of runs, one line for each."""
    right = ("seed", "epochs", "kept", "control", "static", "grown")
    columns = ("run", "task", "seed", "strategy", "epochs", "state", *right[2:])
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
            percent(run.static_test_accuracy),
            percent(run.grown_test_accuracy),
        )
    note = (
        "epochs: done, of all; kept: of the grafts judged; control, static (of the grown one's "
        "size), grown: test accuracy"
    )
    problems = [Text(f"{run.run}: {run.problem}", style="red") for run in found if run.problem]
    return Group(made, legend(note), *problems)


def own_runs_table(found: Sequence[OwnRun]) -> RenderableType:
    """Table of the runs in a store, one line for each."""
    right = ("seed", "epochs", "kept", "culled")
    made = table("scope", "run", "model", *right, "end", "last seen", right=right)
    for run in found:
        seen = time.localtime(run.last_seen)
        made.add_row(
            run.scope,
            run.run,
            run.model or "-",
            number(run.seed),
            f"{run.epochs:,}",
            f"{run.kept:,}",
            f"{run.culled:,}",
            run.end or "-",
            "-" if run.last_seen is None else time.strftime("%Y-%m-%d %H:%M", seen),
        )
    note = (
        "kept, culled: grafts that ended; end: finished, closed, or - while it goes on, and if it "
        "was killed; last seen: when its last epoch ended"
    )
    return Group(made, legend(note))


@final
@dataclass(frozen=True, slots=True)
class SeedRow:
    """Line of the table of seeds; state, kept kernels and preview where they are known."""

    layer: str
    seed: int
    blueprint: str
    state: str = ""
    kept: int = 0
    preview: SeedPreview | None = None


def seeds_table(rows: Sequence[SeedRow], chooser: str, unit: str = "") -> RenderableType:
    """Table of seeds: mean reward with its interval, and probability of the next choice.

    Args:
        rows: The seeds.
        chooser: Name of the strategy.
        unit: Unit of the rewards, as in ``", in nats"``.
    """
    of_run = any(row.state for row in rows)
    seen = [row.preview for row in rows if row.preview]
    taught = any(one.worth not in {None, 1.0} for one in seen)
    says = "worth" if taught else "score"
    columns = ("n", "mean", "95 % interval", says, "p", "chosen", "open")
    title = f"Seeds, as {chooser} sees them now"
    made = table("layer", "seed", "blueprint", *columns, right=("seed", *columns), title=title)
    for row in rows:
        made.add_row(
            row.layer,
            str(row.seed),
            seed_sign(row.state, row.blueprint, row.kept) if row.state else row.blueprint,
            *_cells(row.preview, taught=taught),
        )
    least = max((one.least_share for one in seen), default=0.0)
    note = legend(
        f"mean: of the last n rewards{unit}, with its t interval; p: probability of being chosen "
        "next, were all seeds of the layer free; "
        + (
            "worth: expected gain ÷ what an average seed of the run earns then; "
            if taught
            else "score: the strategy's own, - for a first try; "
        )
        + "chosen: how often, auditions included"
        + (f", at least {100 * least:.3g} % of its layer's choices" if least else "")
        + "; open: choices whose outcome has not come"
    )
    return Group(made, states_legend(), note) if of_run else Group(made, note)


def choices_table(decisions: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Table of the latest choices with their reasons, and their runs where there are several."""
    if not decisions:
        return Text("No seed was chosen.")
    shown = decisions[-_LATEST:]
    cut = f", the last {len(shown)} of {len(decisions):,}" if len(shown) < len(decisions) else ""
    several = len({data.get("run") for data in decisions}) > 1
    columns = (*(("run",) if several else ()), "epoch", "layer", "seed", "p", "score", "why")
    made = table(*columns, right=("epoch", "seed", "p", "score"), title=f"Choices{cut}")
    for data in shown:
        made.add_row(
            *([data["run"]] if several else []),
            str(data["epoch"]),
            data["layer"],
            str(data["seed"]),
            f"{data['propensity']:.2f}",
            number(data["score"], ".2f"),
            f"{data['reason']}{' (fallback)' if data['fallback'] else ''}",
        )
    note = (
        "epoch: at whose end the seed was chosen, from 0; p: probability of the choice; score: "
        "the strategy's own, - for a first try; sd: standard deviations of the rewards"
    )
    return Group(made, legend(note))


def _cells(now: SeedPreview | None, *, taught: bool) -> tuple[str, ...]:
    if now is None:
        return ("-",) * 7
    says = number(now.score, ".2f")
    if taught:
        says = f"{number(now.worth, '.2f')} ± {number(now.worth_sd, '.2f')}"
    return (
        str(now.count),
        _reward(now.mean),
        "-" if now.interval is None else " to ".join(map(_reward, now.interval)),
        says,
        ("~" if now.propensity_error >= 0.005 else "") + f"{now.propensity:.2f}",
        str(now.choices),
        str(now.pending),
    )


def _reward(value: float | None) -> str:
    if value is None:
        return "-"
    plain = not value or 5e-4 <= abs(value) < 1e3
    return f"{value:+.4f}" if plain else f"{value:+.1e}"


def _short(why: str) -> str:
    # "worth +0.2075 ± 0.0214 of held-out loss: more than 2 standard errors": the numbers have
    # a column of their own.
    _, colon, after = why.partition(" of held-out loss: ")
    short = (after if colon else why).replace("standard errors", "s.e.")
    return short.replace("not more than", "≤").replace("more than", ">")


def _difference(key: str, value: float) -> Text:
    loss = key.endswith("loss")
    better = value < 0 if loss else value > 0
    text = f"{value:+.4f}" if loss else f"{value * 100:+.1f} pt"
    return Text(text, style="green" if better else "red" if value else "")
