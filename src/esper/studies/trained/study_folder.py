"""Folder of an effect study: one JSON file a run, so that no run is trained twice.

```
effect-study/
├── runs/letter-s0-warm1-5be1c0aa.json     a run: its spec and its result
└── histories/letter-s0-teacher1-90d2f1e3.db   the event log of teaching runs, for `esper inspect`
```

A file's name ends in a digest of all that determines the run: settings, seeds, the runs before it,
sources, version of torch. What other settings or sources made stays beside it, and is not read.
"""

import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import esper
from esper.contracts.errors import StoreError
from esper.studies.trained.cells import EffectRun
from esper.studies.trained.training import Trained

SCHEMA = 1

_TRAINS = {"training.py", "counting.py", "fleet.py"}

_NO_PART = {"cli", "pictures", "testing"}
"""Rooms that determine no result of a run."""


@final
class StudyFolder:
    """Results and histories of runs; the folder is made if it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("runs", "histories"):
            Path(path, name).mkdir(parents=True, exist_ok=True)

    def file(self, run: EffectRun) -> Path:
        """Path of a run's JSON file."""
        return self.path / "runs" / f"{run.name}-{digest(run)}.json"

    def read(self, run: EffectRun) -> Trained | None:
        """Result of a run; ``None`` if it has not ended, or its history is gone.

        Raises:
            StoreError: if the file is damaged.
        """
        path = self.file(run)
        if not path.exists() or (run.cell.teacher and not self._history(run).exists()):
            return None
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return Trained.from_json(data["result"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{path} is damaged ({error!r}); delete it to train anew") from error

    def history(self, run: EffectRun) -> bytes | None:
        """History that a run inherits: the SQLite file of the run that taught it, if one did."""
        return None if run.teacher is None else self._history(run.teacher).read_bytes()

    def write(self, run: EffectRun, result: Trained, history: bytes | None) -> None:
        """Keep a result, and the history of a run that teaches; whole or not at all."""
        if history is not None:
            _replace(self._history(run), history)
        data = {"schema": SCHEMA, "spec": run.spec, "sources": sources(), "result": asdict(result)}
        _replace(self.file(run), (json.dumps(data, indent=1) + "\n").encode())

    def others(self, runs: list[EffectRun]) -> int:
        """Number of files in the folder that are of none of these runs."""
        known = {self.file(run).name for run in runs}
        return sum(path.name not in known for path in Path(self.path, "runs").glob("*.json"))

    def _history(self, run: EffectRun) -> Path:
        return self.path / "histories" / f"{run.name}-{digest(run)}.db"


def digest(run: EffectRun) -> str:
    """Digest of all that determines a run."""
    whole = json.dumps([run.spec, sources()], sort_keys=True)
    return hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()


@cache
def sources() -> str:
    """Digest of the sources that train, and of the version of torch."""
    made = hashlib.blake2b(version("torch").encode(), digest_size=8)
    root = Path(esper.__file__).parent
    for path in sorted(root.rglob("*.py")):
        part = path.relative_to(root)
        if part.parts[0] in _NO_PART:
            continue
        # Of the studies, the spec of a run has the rest.
        if part.parts[0] == "studies" and part.name not in _TRAINS:
            continue
        made.update(part.as_posix().encode() + path.read_bytes())
    return made.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    beside.replace(path)
