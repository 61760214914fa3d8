"""Outcomes in a JSON file, so that an interrupted benchmark goes on where it was."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from benchmarks.growth.arms.outcome import Outcome

ROOT = Path(__file__).parents[2]
Arms = dict[str, Outcome]
"""Outcome of each arm of one seed."""


@final
class Kept:
    """Outcomes by task, seed and settings; every change is written at once.

    Those that other sources made, Esper's or the arms', are not taken on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fingerprint = fingerprint()
        self._runs: dict[str, dict[str, Any]] = {}
        self.left_out = 0
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["fingerprint"] == self.fingerprint:
                self._runs = data["runs"]
            else:
                self.left_out = len(data["runs"])

    def get(self, key: str) -> Arms | None:
        """Outcomes under a key; ``None`` if there are none."""
        found = self._runs.get(key)
        return found and {arm: Outcome.from_json(data) for arm, data in found.items()}

    def put(self, key: str, arms: Arms) -> None:
        """Keep outcomes, and write the file."""
        self._runs[key] = {arm: asdict(outcome) for arm, outcome in arms.items()}
        self.write({})

    def write(self, summary: Mapping[str, Any]) -> None:
        """Write all outcomes, and a summary of them, whole or not at all."""
        data = {"fingerprint": self.fingerprint, **summary, "runs": self._runs}
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)


def fingerprint() -> str:
    """Digest of what determines an outcome: the sources, and the version of torch."""
    digest = hashlib.sha256(version("torch").encode())
    for folder in (ROOT / "src" / "esper", Path(__file__).parent / "arms"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
