"""Folder of a run: everything that is needed to inspect it, resume it and compare it.

```
runs/letter-s0/
├── run.json                the spec: task, seed, epochs, settings, store, version
├── history.db              the event log, unless --store put it elsewhere
├── control.json            the un-grown control: its losses, epoch by epoch
├── grown.json              the grown network: the same
├── static.json             the static network of the grown one's size: the same
├── full.json               a frozen host, trained in full: the same
├── checkpoint.safetensors  model, optimizer and Tamiyo at the end of the last epoch
├── stored.json             how many events the store has, once it has all of them
├── report.json             the result, once the run has ended
└── run.png                 its picture
```
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

from esper.contracts.errors import ConfigError, EsperError, StoreError, unknown_name
from esper.stores.files import write_whole

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
        """Write ``name.json`` with its checksum, whole or not at all."""
        tree = {"schema": SCHEMA, **data}
        text = json.dumps({**tree, "checksum": _checksum(tree)}, indent=2) + "\n"
        write_whole(self.path / f"{name}.json", text.encode())

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
            checksum = data.pop("checksum", None)
            if checksum is not None and checksum != _checksum(data):
                raise StoreError(f"{path} is damaged: its checksum is wrong")
            schema = int(data.pop("schema"))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise StoreError(f"{path} is damaged: {error!r:.200}") from error
        if schema > SCHEMA:
            raise StoreError(
                f"{path} has schema {schema}, this version reads up to {SCHEMA}; upgrade "
                "esper-morph"
            )
        return data


@contextmanager
def damaged(name: str) -> Iterator[None]:
    """Say of a run that cannot be read that its folder or its log is damaged.

    Raises:
        StoreError: instead of the error that damaged data leads to.
    """
    try:
        yield
    except EsperError:
        raise
    except (
        *(KeyError, TypeError, ValueError, AttributeError, IndexError),
        *(RuntimeError, OverflowError, ZeroDivisionError),
    ) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise StoreError(
            f"{name} is damaged, or was written by another version of Esper: {why}"
        ) from error


def _checksum(tree: Mapping[str, Any]) -> str:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


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
