"""``esper runs``: a table of all runs."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for them)

from dataclasses import asdict

from esper.cli.options import RUNS, Json, Runs


def runs(folder: Runs = RUNS, json: Json = False) -> None:
    """List the runs: how far each is, and what growth was worth."""
    from esper.cli import tables
    from esper.runs.run_reader import summaries

    found = list(summaries(folder))
    if json:
        tables.print_json([asdict(run) for run in found])
    elif found:
        tables.out().print(tables.runs_table(found))
    else:
        text = f"No runs in {folder}/ yet; start one with: esper train letter"
        tables.out().print(text, soft_wrap=True, markup=False)
