"""Check before a run is resumed that no option contradicts its settings."""

from dataclasses import fields
from typing import Any

from esper.cli.options import TrainOptions
from esper.contracts.errors import ConfigError
from esper.runs.run_reader import Run
from esper.runs.store_address import absolute, without_password
from esper.services.tamiyo.settings import load_config


def check_options(options: TrainOptions, run: Run) -> None:
    """Refuse options that contradict the run.

    Raises:
        ConfigError: if there are any; all are named.
    """
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
        # Only what the file has: the task or another option may have set the rest.
        settings = load_config(given).model_dump(mode="json", exclude_unset=True)
        difference = _first_difference(settings, config)
        return f"--config {given} ({difference})" if difference else ""
    if option == "store":
        given = without_password(absolute(given))
        has = without_password(run.spec["store"])
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
