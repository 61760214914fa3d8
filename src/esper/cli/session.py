"""``esper train``: begin a run or go on with one, and show it; it can be stopped at any time."""

import json as jsonlib
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from esper.cli import show
from esper.cli.outermost import INTERRUPTED
from esper.cli.progress import watch
from esper.contracts.errors import ConfigError, EsperError, StoreError
from esper.runs import run_folder, run_lock
from esper.runs import run_reader as lookup
from esper.runs import store_address as addresses
from esper.runs.run_folder import RunFolder
from esper.runs.train import RunSpec, make_spec, train
from esper.services.tamiyo.settings import load_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of ``esper train`` that make a run what it is; ``None`` where not given."""

    task: str | None
    config: Path | None
    strategy: str | None
    seed: int | None
    epochs: int | None
    budget: int | None
    store: str | None


def command(asked: Asked, *, runs: Path, resume: str | None, json: bool) -> None:
    """Do what ``esper train`` was asked for.

    Raises:
        ConfigError: if an option is wrong, or contradicts the run that is to be resumed.
        StoreError: if the store cannot serve, or the run that is to be resumed is damaged.
        typer.Exit: with code 130, if the run was interrupted.
    """
    if resume is None:
        _begin(asked, runs, json)
        return
    run = lookup.read_run(runs, resume)
    _check_same(asked, run)
    if run.result is not None:
        name = run.folder.name
        show.err().print(Text(f"run {name} has ended; there is nothing to resume"), soft_wrap=True)
        _show(run.folder, runs, json)
        return
    spec = _spec_of(run)
    _check_store(spec.store, spec.task)
    _go(spec, run.folder, runs)
    _show(run.folder, runs, json)


def _begin(asked: Asked, runs: Path, json: bool) -> None:
    if asked.task is None:
        raise ConfigError("name a task, as in: esper train letter (esper tasks lists them)")
    config = None if asked.config is None else load_config(asked.config)
    options: dict[str, Any] = {
        "seed": asked.seed or 0,
        "epochs": asked.epochs,
        "config": config,
        "strategy": asked.strategy,
        "budget": asked.budget,
    }
    make_spec(asked.task, **options)  # before a store is made for a run that cannot be
    store = _check_store(asked.store or "", asked.task)
    spec = make_spec(asked.task, **options, store=store)
    made_runs = not runs.exists()
    folder = run_folder.create(runs, spec.task, spec.seed)
    try:
        _go(spec, folder, runs)
    except (EsperError, OSError):
        if not folder.checkpoint.exists():  # not one epoch to go on from
            _remove(folder, runs if made_runs else None)
        raise
    _show(folder, runs, json)


def _check_store(url: str, scope: str) -> str:
    if not url:
        return url
    with show.err().status(f"opening {addresses.without_password(url)}"):  # a lock may take a while
        return addresses.check_store(url, scope)


def _go(spec: RunSpec, folder: RunFolder, runs: Path) -> None:
    """Train, and draw the picture; Ctrl-C says how to go on."""
    console = show.err()
    watching = watch(spec, folder.name, console, kept=_kept(folder))
    try:
        with run_lock.held(folder), watching.showing():
            train(spec, folder, on_progress=watching)
    except KeyboardInterrupt:
        say = (
            f"interrupted {watching.where}; go on with: "
            f"esper train --resume {folder.name}{_where(runs)}"
        )
        console.print(Text(say, style="yellow"), soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    _draw(folder)


def _draw(folder: RunFolder) -> None:
    from esper.pictures.run import draw  # noqa: PLC0415 (only its caller needs matplotlib)

    run = lookup.read_folder(folder)
    try:
        draw(run, run.events(), folder.picture)
    except EsperError as error:  # matplotlib is an extra; the run is complete without a picture
        show.err().print(Text(str(error), style="yellow"), soft_wrap=True)


def _show(folder: RunFolder, runs: Path, json: bool) -> None:
    run = lookup.read_folder(folder)
    picture = folder.picture if folder.picture.exists() else None
    if json:
        document = {
            "run": folder.name,
            "folder": str(folder.path),
            "picture": None if picture is None else str(picture),
            "spec": {**run.spec, "store": addresses.without_password(run.spec["store"])},
            "result": run.result,
        }
        typer.echo(jsonlib.dumps(document, indent=2))
        return
    console = show.out()
    console.print(show.result(run))
    console.print()
    for name, value in (
        ("run folder", str(folder.path)),
        ("picture", "none" if picture is None else str(picture)),
        ("look closer", f"esper inspect {folder.name}{_where(runs)}"),
    ):
        console.print(Text.assemble((f"{name:12}", "dim"), value), soft_wrap=True)


def _where(runs: Path) -> str:
    return "" if runs == Path("runs") else f" --runs {runs}"


def _kept(folder: RunFolder) -> Counter[tuple[str, int]]:
    """Kernels that an interrupted run has kept."""
    kept: Counter[tuple[str, int]] = Counter()
    if folder.checkpoint.exists():
        for event in lookup.read_folder(folder).events():
            if event.kind == "graft":
                where = (event.data["layer_name"], event.data["seed_idx"])
                kept[where] += bool(event.data["kept"])
    return kept


def _remove(folder: RunFolder, runs: Path | None) -> None:
    shutil.rmtree(folder.path)
    if runs is not None:
        with suppress(OSError):  # somebody else's run may be in it by now
            runs.rmdir()


def _spec_of(run: lookup.Run) -> RunSpec:
    try:
        return RunSpec.from_json(dict(run.spec))
    except (KeyError, ValueError) as error:
        raise StoreError(f"{run.folder.path / 'run.json'} is damaged: {error}") from error


def _check_same(asked: Asked, run: lookup.Run) -> None:
    """Refuse to resume a run as another one.

    Raises:
        ConfigError: if an option contradicts the run; all such are named.
    """
    wrong = [text for option in fields(asked) if (text := _contradiction(asked, option.name, run))]
    if wrong:
        raise ConfigError(
            f"run {run.folder.name!r} cannot be resumed as another run: {', '.join(wrong)}; "
            "leave that out"
        )


def _contradiction(asked: Asked, option: str, run: lookup.Run) -> str:
    given = getattr(asked, option)
    if given is None:
        return ""
    config = run.spec["config"]
    if option == "config":
        # Only what the file says: the task or another option may have settled the rest.
        said = load_config(given).model_dump(mode="json", exclude_unset=True)
        difference = _first_difference(said, config)
        return f"--config {given} ({difference})" if difference else ""
    if option == "store":
        given = addresses.without_password(addresses.absolute(given))
        has = addresses.without_password(run.spec["store"])
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


def _first_difference(said: Any, has: Any, path: str = "") -> str:
    if not isinstance(said, dict) or not isinstance(has, dict):
        return "" if said == has else f"{path} is {said!r}, it has {has!r}"
    for key, value in said.items():
        found = _first_difference(value, has.get(key), f"{path}.{key}" if path else key)
        if found:
            return found
    return ""
