"""Tables of the effect study."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from esper.cli.tables import heading, legend, number, percent, table
from esper.studies.trained.cells import RANDOM
from esper.studies.trained.effect import EffectSpec
from esper.studies.trained.figures import SLOTS, CellFigures, TaskFigures
from esper.studies.trained.setups import GRAFTS

_JUDGED = ("cold", "audition", "warm1", "warm3", "where-cold", "where", "oracle")
"""Cells of the summary."""


def show(console: Console, spec: EffectSpec, found: Sequence[TaskFigures]) -> None:
    """Print the figures of every task, and the effects of all in one table."""
    for one in found:
        console.print(heading(f"{one.setup.task}: {', '.join(one.setup.seeds)}"))
        for line, style in remarks(one):
            console.print(Text(line, style=style))
        for made in (_effects(one), _gains(one), _costs(one)):
            console.print()
            console.print(made)
        console.print()
    if len(found) > 1:
        console.print(_summary(found))
        console.print()
    console.print(legend(_legend(spec)))


def remarks(one: TaskFigures) -> list[tuple[str, str]]:
    """What must be known before the figures of a task are read, each with its style."""
    said = []
    random = next(row for row in one.cells if row.cell == RANDOM).effect
    if one.null and random is not None:
        gain = random.area.text("+.3g")
        said.append((f"null task: what random choice gains is not clear of 0: {gain}", "yellow"))
    if one.sound:
        said.append((f"homogeneous seeds: auto ÷ seed 0 is {one.alike}, as it must be", "dim"))
    elif one.sound is False:
        said.append((f"homogeneous seeds: auto ÷ seed 0 is {one.alike}, not 1.00 ± 0.02: do not "
                     "trust the figures of this task", "red"))  # fmt: skip
    if one.history and not one.null:
        ratios = ", ".join(f"{name} {it.text('.2f')}" for name, it in one.history.items())
        said.append((f"after one earlier run ÷ the same without: {ratios}", "dim"))
    if one.placebos is not None:
        said.append((one.placebos.text(), "red" if one.placebos.too_many else "dim"))
    for layer, sizes in one.sizes.items():
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        said.append((f"parameters at {layer}: {text}", "dim"))
    return said


def _effects(one: TaskFigures) -> Table:
    right = ("area", "÷ slots", "÷ random")
    made = table("cell", *right, right=right, title="Effect, first ten grafts")
    for row in one.cells:
        if row.effect is not None:
            shown = row.effect
            made.add_row(row.cell, number(shown.area.value, "+.3g"), shown.over_slots.text(".2f"),
                         shown.over_random.text(".2f"), style=_style(row))  # fmt: skip
    return made


def _gains(one: TaskFigures) -> Table:
    right = ("after 3", "5", "10", "reward", "accuracy", "parameters")
    made = table("cell", *right, right=right, title="Gain over the control, in nats")
    for row in one.cells:
        gains = [number(gain, "+.3f") for gain in row.effect.gains] if row.effect else ["-"] * 3
        made.add_row(row.cell, *gains, number(row.reward, "+.4f"), percent(row.accuracy),
                     number(row.parameters, ",.0f"), style=_style(row))  # fmt: skip
    return made


def _costs(one: TaskFigures) -> Table:
    right = ("compute", "seconds", "kept", "of", "auditioned", "least share", "tried")
    made = table("cell", *right, right=right, title="Cost, and what was chosen")
    for row in one.cells:
        made.add_row(row.cell, f"{row.compute:.2f} x", f"{row.seconds:.1f}", f"{row.kept:.1f}",
                     f"{row.judged:.1f}", f"{row.auditioned:.1f}", percent(row.least_share),
                     percent(row.tried), style=_style(row))  # fmt: skip
    return made


def _style(row: CellFigures) -> str:
    return "dim" if row.effect is None or row.cell == SLOTS else ""


def _summary(found: Sequence[TaskFigures]) -> Table:
    names = [name for name in _JUDGED if any(row.cell == name for row in found[0].cells)]
    made = table("task", "÷", *names, right=names, title="Effects of all tasks")
    for one in found:
        rows = {row.cell: row.effect for row in one.cells}
        effects = [effect for name in names if (effect := rows[name]) is not None]
        name = one.setup.task + (" (null)" if one.null else "")
        made.add_row(name, "slots", *[effect.over_slots.text(".2f") for effect in effects])
        made.add_row("", "random", *[effect.over_random.text(".2f") for effect in effects])
        heard = [effect.over_oracle for effect in effects if effect.over_oracle is not None]
        if heard:
            made.add_row("", "oracle", *[share.text(".2f") for share in heard])
    return made


def _legend(spec: EffectSpec) -> str:
    look = "A look: too few runs for conclusions. " if spec.quick else ""
    seeds = f"{spec.seeds} run seed" + ("s" if spec.seeds > 1 else "")
    return (
        f"{look}{seeds}; in brackets bootstrap 95 % intervals over them. Area: control's test loss "
        f"less the cell's, added up over the epochs of the first {GRAFTS} grafts, in nats; slots: "
        "mean of the cells that take one seed always, which is seed 0 over the orders of the "
        "slots; after 3, 5, 10: grafts; reward: mean of a graft's; accuracy: of the test part, "
        "last three epochs; compute: operations relative to the control's plain loop, passes on "
        "the side included; seconds: of processor; auditioned: kernels that took part in "
        "auditions; least share: of a seed among the grafts at its site; tried: seeds that were "
        "chosen, or auditioned, at all. Teachers are the earlier runs of the warm cells; their "
        "cost is theirs alone."
    )
