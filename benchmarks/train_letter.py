"""Duration and result of ``esper train letter`` with defaults, control included."""

import json
import subprocess
import sys
import tempfile
from time import perf_counter


def rows() -> list[tuple[str, str, str]]:
    """One whole run."""
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "esper", "train", "letter", "--json", "--runs", folder],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = perf_counter() - started
    result = json.loads(done.stdout)["result"]
    grown, control = result["grown"], result["control"]
    return [
        ("esper train letter, defaults, control included", f"{seconds:.0f} s", "< 90 s"),
        (
            "test accuracy, grown against un-grown control",
            f"{grown['test_accuracy']:.1%} against {control['test_accuracy']:.1%}",
            "",
        ),
    ]
