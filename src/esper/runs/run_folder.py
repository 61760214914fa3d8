"""Folder of a run: everything that is needed to inspect it, resume it and compare it.

```
runs/letter-s0/
├── run.json                the spec: task, seed, epochs, settings, store, version
├── history.db              the event log, unless --store put it elsewhere
├── control.json            the un-grown control: its losses, epoch by epoch
├── grown.json              the grown network: the same
├── static.json             the static network of the grown one's size: the same
├── checkpoint.safetensors  model, optimizer and Tamiyo at the end of the last epoch
├── report.json             the result, once the run has ended
└── run.png                 its picture
```
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from esper.contracts.errors import ConfigError, StoreError, unknown_name

SCHEMA = 1


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and JSON files of one run; the files need not exist yet."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the run, which is the folder's."""
        return self.path.name

    @property
    def checkpoint(self) -> Path:
        """Path of the last checkpoint."""
        return self.path / "checkpoint.safetensors"

    @property
    def picture(self) -> Path:
        """Path of the picture."""
        return self.path / "run.png"

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Write ``name.json``, whole or not at all."""
        beside = self.path / f"{name}.json.new"
        beside.write_text(json.dumps({"schema": SCHEMA, **data}, indent=2) + "\n", encoding="utf-8")
        beside.replace(self.path / f"{name}.json")

    def read(self, name: str) -> dict[str, Any] | None:
        """Read ``name.json``; ``None`` if there is none.

        Raises:
            StoreError: if it is damaged or of a newer version.
        """
        path = self.path / f"{name}.json"
        if not path.exists():
            return None
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            schema = int(data.pop("schema"))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise StoreError(f"{path} is damaged: {error}") from error
        if schema > SCHEMA:
            raise StoreError(
                f"{path} has schema {schema}, this version reads up to {SCHEMA}; upgrade "
                "esper-morph"
            )
        return data


def create(runs: Path, task: str, seed: int) -> RunFolder:
    """Make the folder of a new run: ``letter-s0``, or ``letter-s0-2`` if that is taken."""
    runs.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = runs / (f"{task}-s{seed}" if number == 1 else f"{task}-s{seed}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return RunFolder(path)


def find(runs: Path, name: str) -> RunFolder:
    """Find the run of this name, or at this path.

    Raises:
        ConfigError: if there is none; the message suggests the nearest name.
    """
    for path in (runs / name, Path(name)):
        if (path / "run.json").is_file():
            return RunFolder(path)
    known = [folder.name for folder in every(runs)]
    raise ConfigError(f"in {runs}/: {unknown_name('run', name, known)}")


def every(runs: Path) -> Iterator[RunFolder]:
    """Folders of all runs, the oldest first."""
    if runs.is_dir():
        found = [path for path in runs.iterdir() if (path / "run.json").is_file()]
        yield from map(RunFolder, sorted(found, key=lambda p: (p / "run.json").stat().st_mtime))
