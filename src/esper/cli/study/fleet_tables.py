"""Table of a fleet."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from esper.cli.tables import heading, legend, percent, table
from esper.studies.trained.fleet_figures import FleetFigures, FleetRow

GAINS = ("cell", "gain", "÷ random", "before")
COSTS = ("cell", "accuracy", "kept", "arms", "auditioned", "compute", "seconds")


def show_fleet(console: Console, one: FleetFigures) -> None:
    """Print the figures of a fleet."""
    console.print(heading(f"fleet of {one.setup.adaptations}: {', '.join(one.setup.seeds)}"))
    for line in remarks(one):
        console.print(Text(line))
    for head, cells_of in ((GAINS, gains_of), (COSTS, costs_of)):
        made = table(*head, right=head[1:])
        for row in one.rows:
            made.add_row(*cells_of(row))
        console.print()
        console.print(made)
    console.print()
    for row in one.rows:
        console.print(Text(f"{row.cell}: {row.what}", style="dim"))
    console.print(legend(explained(one)))


def remarks(one: FleetFigures) -> list[str]:
    """Sentences below the tables: what the history adds."""
    if one.history is None:
        return []
    return [f"gain of auditions with the fleet's history ÷ without: {one.history.text('.2f')}"]


def gains_of(row: FleetRow) -> Sequence[str]:
    """A row of the table of gains."""
    estimates = [
        "-" if one is None else one.text(form)
        for one, form in ((row.gain, "+.4f"), (row.over_random, ".2f"), (row.young, ".2f"))
    ]
    return row.cell, *estimates


def costs_of(row: FleetRow) -> Sequence[str]:
    """A row of the table of costs."""
    return (
        row.cell,
        percent(row.accuracy),
        f"{row.kept:.2f}",
        f"{row.arms:.1f}",
        f"{row.auditioned:.1f}",
        f"{row.compute:.2f} x",
        f"{row.seconds:.2f}",
    )


def explained(one: FleetFigures) -> str:
    """Legend of the columns."""
    seeds = f"{one.seeds} run seed" + ("s" if one.seeds > 1 else "")
    return (
        f"{seeds}, a fleet each; in brackets bootstrap 95 % intervals over them. Gain: control's "
        f"test loss less the cell's at the end of an adaptation, mean of adaptations "
        f"{one.young + 1} to {one.setup.adaptations}, in nats; ÷ random: sum of those gains over "
        f"that of an arm at random, whose gain is on average that of the mean arm; before: the "
        f"same in adaptations 1 to {one.young}; kept: kernels of an adaptation; arms: different "
        "ones kept in a fleet; compute: operations relative to the control's, passes on the side "
        "included; seconds: of processor, of an adaptation"
    )
