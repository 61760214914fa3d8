"""Session of ``esper train``: train with progress, draw the picture, print the result."""

import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import Any

import typer
from rich.text import Text

from esper.cli import tables
from esper.cli.errors import INTERRUPTED
from esper.cli.options import RUNS, TrainOptions
from esper.cli.progress import watch
from esper.contracts.errors import ConfigError, EsperError, StoreError
from esper.pictures.run import draw
from esper.runs import run_folder, run_lock
from esper.runs.run_folder import RunFolder, damaged
from esper.runs.run_reader import Run, grafts, read_folder, read_run
from esper.runs.spec import RunSpec, make_spec
from esper.runs.store_address import absolute, check_store
from esper.runs.train import train
from esper.services.tamiyo.settings import load_config
from esper.stores.addresses import remember, shown, without_secrets
from esper.tasks import TASKS


def start(options: TrainOptions, runs: Path, *, json: bool) -> None:
    """Start a run, and show its result when it ends.

    Raises:
        ConfigError: if an option is wrong.
        StoreError: if the store cannot be used.
        typer.Exit: with code 130, if the run was interrupted.
    """
    if options.task is None:
        raise ConfigError("name a task, as in: esper train letter (esper tasks lists them)")
    defaults = TASKS.load(options.task).config
    settings: dict[str, Any] = {
        "seed": options.seed or 0,
        "epochs": options.epochs,
        "config": options.config and load_config(options.config, defaults=defaults),
        "strategy": options.strategy,
        "budget": options.budget,
        "static": options.static is not False,
    }
    make_spec(options.task, **settings)  # before a store is made for a run that cannot be
    store = _checked(options.store or "", options.task)
    spec = make_spec(options.task, **settings, store=store)
    made_runs = not runs.exists()
    folder = run_folder.create(runs, spec.task, spec.seed)
    try:
        _train(spec, folder, runs)
    except (EsperError, OSError):
        if not folder.checkpoint.exists():  # not one epoch to go on from
            shutil.rmtree(folder.path)
            if made_runs:
                with suppress(OSError):  # another run may be in it by now
                    runs.rmdir()
        raise
    _show(folder, runs, json)


def resume(name: str, options: TrainOptions, runs: Path, *, json: bool) -> None:
    """Resume a run, and show its result when it ends; one that has ended is shown at once.

    Raises:
        ConfigError: if there is no such run, or an option contradicts it.
        StoreError: if the store cannot be used, or the run is damaged.
        typer.Exit: with code 130, if the run was interrupted.
    """
    with damaged(f"run {name}"):
        run = read_run(runs, name)
        _check_options(options, run)
    missing = 0 if run.result is None else _not_stored(run)
    if run.result is None or missing:
        spec = _spec_of(run)
        _checked(spec.store, spec.task)
        _train(spec, run.folder, runs)
        if missing:
            tables.note(f"run {run.folder.name} had ended; {missing} events that its store had "
                        "not were told again")  # fmt: skip
    else:
        tables.note(f"run {run.folder.name} has ended; there is nothing to resume")
        if not run.folder.picture.exists():  # stopped while it was drawn
            _draw(run.folder)
    _show(run.folder, runs, json)


def _not_stored(run: Run) -> int:
    try:
        return run.not_stored()
    except StoreError as error:
        tables.note(f"whether all events are stored cannot be seen now: {error}", style="yellow")
        return 0


def _checked(url: str, scope: str) -> str:
    if not url:
        return url
    with tables.err().status(f"opening {shown(url)}"):  # a lock may take a while
        return check_store(url, scope)


def _spec_of(run: Run) -> RunSpec:
    with damaged(str(run.folder.path / "run.json")):
        return RunSpec.from_json(dict(run.spec))


def _train(spec: RunSpec, folder: RunFolder, runs: Path) -> None:
    """Train, and draw the picture; Ctrl-C says how to go on."""
    watching = watch(spec, folder.name, tables.err(), kept=_kept(folder))
    try:
        with run_lock.held(folder), watching.showing():
            train(spec, folder, on_progress=watching)
    except KeyboardInterrupt:
        command = f"esper train --resume {quote(folder.name)}{_where(runs)}"
        tables.note(f"interrupted {watching.where}; go on with: {command}", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    _draw(folder)


def _draw(folder: RunFolder) -> None:
    with damaged(f"run {folder.name}"):
        _draw_run(read_folder(folder))


def _draw_run(run: Run) -> None:
    folder = run.folder
    try:
        draw(run, run.events(), folder.picture)
    except EsperError as error:  # matplotlib is an extra; the run is complete without a picture
        tables.note(str(error), style="yellow")


def _show(folder: RunFolder, runs: Path, json: bool) -> None:
    with damaged(f"run {folder.name}"):
        _show_run(read_folder(folder), runs, json)


def _show_run(run: Run, runs: Path, json: bool) -> None:
    folder = run.folder
    picture = str(folder.picture) if folder.picture.exists() else None
    if json:
        tables.print_json(
            {
                "run": folder.name,
                "folder": str(folder.path),
                "picture": picture,
                "spec": {**run.spec, "store": shown(run.spec["store"])},
                "result": run.result,
            }
        )
        return
    console = tables.out()
    if run.result is not None:
        console.print(tables.result(run.result))
    console.print()
    for name, value in (
        ("run folder", str(folder.path)),
        ("picture", picture or "none"),
        ("look closer", f"esper inspect {quote(folder.name)}{_where(runs)}"),
    ):
        console.print(Text.assemble((f"{name:12}", "dim"), value), soft_wrap=True)


def _where(runs: Path) -> str:
    return "" if runs == RUNS else f" --runs {quote(str(runs))}"


def _kept(folder: RunFolder) -> Counter[tuple[str, int]]:
    """Kernels that an interrupted run has kept, by layer and seed."""
    kept: Counter[tuple[str, int]] = Counter()
    if folder.checkpoint.exists():
        for graft in grafts(read_folder(folder).events()):
            kept[graft["layer_name"], graft["seed_idx"]] += bool(graft["kept"])
    return kept


def _check_options(options: TrainOptions, run: Run) -> None:
    """Refuse to resume a run with options that contradict it; all such options are named."""
    found = [_contradiction(field.name, getattr(options, field.name), run)
             for field in fields(options)]  # fmt: skip
    if any(found):
        raise ConfigError(
            f"run {run.folder.name!r} cannot be resumed as another run: "
            f"{', '.join(filter(None, found))}; leave that out"
        )


def _contradiction(option: str, given: Any, run: Run) -> str:
    if given is None:
        return ""
    config = run.spec["config"]
    if option == "config":
        # Only what file and task have: another option may have set the rest.
        defaults = TASKS.load(run.spec["task"]).config
        settings = load_config(given, defaults=defaults).model_dump(mode="json", exclude_unset=True)
        difference = _first_difference(settings, config)
        return f"--config {given} ({difference})" if difference else ""
    if option == "static":
        return "--no-static (it has one)" if run.spec.get("static", True) else ""
    if option == "store":
        given = remember(absolute(given))
        has = without_secrets(run.spec["store"])
        return "" if given == has else f"--store {given} (it has {has or 'its own folder'})"
    has = {
        "task": run.spec["task"],
        "strategy": run.strategy,
        "seed": run.spec["seed"],
        "epochs": run.spec["epochs"],
        "budget": config["growth"]["budget"],
    }[option]
    flag = option if option == "task" else f"--{option}"
    return "" if given == has else f"{flag} {given} (it has {has})"


def _first_difference(given: Any, has: Any, path: str = "") -> str:
    if not isinstance(given, dict) or not isinstance(has, dict):
        return "" if given == has else f"{path} is {given!r}, it has {has!r}"
    differences = (
        _first_difference(value, has.get(key), f"{path}.{key}" if path else key)
        for key, value in given.items()
    )
    return next(filter(None, differences), "")
