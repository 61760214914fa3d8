"""Report of an effect study: one HTML file without links to others, pictures inside.

Every figure can be traced: each table names its cells, and the last one has all runs, with seeds,
grafts and the JSON file of each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

from esper.contracts.errors import ConfigError
from esper.drawing import style
from esper.pictures.effect import draw_effect
from esper.studies.trained.cells import CONTROL
from esper.studies.trained.effect import EffectSpec
from esper.studies.trained.figures import AFTER, TaskFigures
from esper.studies.trained.setups import GRAFTS
from esper.studies.trained.study_folder import sources
from esper.studies.trained.training import Trained

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem;
margin: 2rem auto; padding: 0 1rem } table { border-collapse: collapse; margin: .5rem 0 1.5rem;
font-size: 13px } td, th { padding: .15rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
vertical-align: top } td:first-child, th:first-child, td.text { text-align: left } caption {
text-align: left; font-weight: 600; padding: .3rem 0 } .warning { color: #b00 } .wide { overflow-x:
auto } svg { max-width: 100%; height: auto } code { background: #f3f3f3; padding: .1rem .3rem }"""

_EFFECTS = ("cell", "", "area, nats", "÷ slots", "÷ random")
_REST = ("cell", *[f"gain after {n}" for n in AFTER], "reward", "test accuracy", "parameters",
         "compute ÷ control", "processor s", "kept", "judged", "auditioned", "least share",
         "tried")  # fmt: skip
_RUNS = ("run", "run seed", "area, nats", "test loss", "test accuracy", "parameters", "GFLOP",
         "grafts", "file")  # fmt: skip


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """How a study was made.

    Attributes:
        command: Command line.
        version: Version of Esper.
        sources: Digest of the sources that trained.
        machines: Versions and processors, each once.
        look: True if it is too small for conclusions.
    """

    command: str
    version: str
    sources: str
    machines: list[dict[str, str]]
    look: bool


def about(command: str, spec: EffectSpec, results: Iterable[Trained]) -> About:
    """How these results were made."""
    machines = {tuple(sorted(result.machine.items())): result.machine for result in results}
    return About(
        command=command,
        version=version("esper-morph"),
        sources=sources(),
        machines=list(machines.values()),
        look=spec.quick,
    )


def check(path: Path | None) -> None:
    """Check before any work that a report can be written, if one is wanted.

    Raises:
        ConfigError: if the suffix is not .html, or as `style.check` does.
    """
    if path is not None:
        if path.suffix.lower() != ".html":
            raise ConfigError(f"a report is .html, not {path.name!r}")
        style.check(path.with_suffix(".svg"), "report")


def write(
    path: Path,
    tasks: Sequence[TaskFigures],
    results: Sequence[Trained],
    how: About,
    files: Mapping[str, Path],
) -> None:
    """Write the report.

    Args:
        path: Where.
        tasks: Figures of each task.
        results: All runs.
        how: How they were made.
        files: JSON file of each run, by its name.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Effect study</title><style>{STYLE}</style>",
        "<h1>What choosing the seed is worth</h1>",
        *_head(how, tasks),
        _picture(tasks),
        *[part for one in tasks for part in _task(one)],
        *_runs(tasks, results, files),
        "</html>\n",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _head(how: About, tasks: Sequence[TaskFigures]) -> list[str]:
    look = "<p class=warning>A look: too few runs for conclusions.</p>"
    return [
        look if how.look else "",
        made_by(how, tasks[0].seeds),
        "<p>Runs of one run seed have the same initial weights, batches and draws. <b>Area</b>: "
        f"test loss of the un-grown control less the run's, added up over the epochs of the first "
        f"{GRAFTS} grafts. <b>÷ slots</b>: sum of a cell's areas over run seeds, divided by that "
        "of the cells that take one seed always (their mean is seed 0 over the orders of the "
        "slots); <b>÷ random</b> likewise. In brackets: bootstrap 95 % intervals over run seeds, "
        "paired. Compute counts all passes on the side. Test data decided nothing.</p>",
    ]


def made_by(how: About, seeds: int) -> str:
    """HTML of how a study was made."""
    machines = "; ".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in how.machines)
    return (
        f"<p><code>{escape(how.command)}</code><br>Esper {escape(how.version)}, sources "
        f"{how.sources}; {escape(machines)}; run seeds 0 to {seeds - 1}.</p>"
    )


def _picture(tasks: Sequence[TaskFigures]) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder, "effect.svg")
        draw_effect(tasks, path)
        text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def _task(one: TaskFigures) -> list[str]:
    setup = one.setup
    sizes = "; ".join(
        f"{layer}: " + ", ".join(f"{name} {size}" for name, size in kernels.items())
        for layer, kernels in one.sizes.items()
    )
    found = [
        f"<h2>{escape(setup.task)}</h2>",
        f"<p>Sites {escape(', '.join(setup.layers))}; seeds {escape(', '.join(setup.seeds))}; "
        f"{setup.epochs} epochs; a graft takes {setup.cycle}; areas over epochs "
        f"{setup.window.start} to {setup.window.stop - 1}. Parameters of kernels: "
        f"{escape(sizes)}.</p>",
    ]
    if one.null:
        found.append("<p class=warning>Null task: what random choice gains is not clear of 0.</p>")
    if one.sound is not None:
        mark, ratio = "" if one.sound else " class=warning", "auto ÷ seed 0 (must be 1.00 ± 0.02)"
        found.append(f"<p{mark}>Homogeneous seeds, {ratio}: {one.alike}.</p>")
    if one.history and not one.null:
        ratios = ", ".join(f"{name} {it.text('.2f')}" for name, it in one.history.items())
        found.append(f"<p>After one earlier run ÷ the same without: {ratios}.</p>")
    if one.placebos is not None:
        mark = " class=warning" if one.placebos.too_many else ""
        text = one.placebos.text().capitalize()
        doubt = (
            "Each interval is as if no two were judged on the same data, as in auditions they are"
        )
        found.append(f"<p{mark}>{text}. {doubt}.</p>")
    effects = [
        (row.cell, row.what, row.effect.area.text("+.3g"), row.effect.over_slots.text(".2f"),
         row.effect.over_random.text(".2f"))
        for row in one.cells
        if row.effect is not None
    ]  # fmt: skip
    rest = [
        (
            row.cell,
            *([f"{gain:+.4f}" for gain in row.effect.gains] if row.effect else ["-"] * len(AFTER)),
            _number(row.reward, "+.5f"),
            f"{row.accuracy:.2%}",
            f"{row.parameters:,.0f}",
            f"{row.compute:.2f}",
            f"{row.seconds:.1f}",
            f"{row.kept:.1f}",
            f"{row.judged:.1f}",
            f"{row.auditioned:.1f}",
            _number(row.least_share, ".1%"),
            _number(row.tried, ".0%"),
        )
        for row in one.cells
    ]
    return [*found, table_of("Effect", _EFFECTS, effects), table_of("All figures", _REST, rest)]


def _runs(
    tasks: Sequence[TaskFigures], results: Sequence[Trained], files: Mapping[str, Path]
) -> list[str]:
    windows = {one.setup.task: one.setup.window for one in tasks}
    controls = {(run.task, run.seed): run for run in results if run.cell == CONTROL}
    rows = []
    for run in results:
        control = controls[run.task, run.seed]
        window = windows[run.task] if run.run_seed == run.seed else ()
        area = sum(control.test_losses[epoch] - run.test_losses[epoch] for epoch in window)
        rows.append(
            (
                run.name,
                str(run.run_seed),
                f"{area:+.4g}" if window and run is not control else "-",
                f"{run.test_losses[-1]:.4f}",
                f"{run.test_accuracies[-1]:.2%}",
                f"{run.parameters:,}",
                f"{sum(run.flops) / 1e9:.3g}",
                ", ".join(map(_graft, run.grafts)),
                files[run.name].name,
            )
        )
    note = "<p>Grafts: epoch, site, seed, blueprint, reward; + kept, x culled.</p>"
    return ["<h2>Runs</h2>", note, table_of("", _RUNS, rows)]


def _graft(graft: Mapping[str, object]) -> str:
    sign = "+" if graft["kept"] else "x"
    reward = graft["reward"]
    earned = f" {reward:+.4f}" if isinstance(reward, float) else ""
    return (
        f"{sign}{graft['began']} {graft['layer_name']}:{graft['seed_idx']} "
        f"{graft['blueprint']}{earned}"
    )


def table_of(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """HTML of a table; long texts stand at the left."""
    names = "".join(f"<th>{escape(name)}" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(cell)}>{escape(cell)}" for cell in row) + "\n" for row in rows
    )
    head_row = f"<caption>{escape(caption)}</caption><tr>{names}"
    return f"<div class=wide><table>{head_row}\n{body}</table></div>"


def _kind(cell: str) -> str:
    return " class=text" if len(cell) > 24 and "[" not in cell else ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
