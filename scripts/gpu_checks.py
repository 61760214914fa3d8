"""Run the checks of GPUs and write a table: ``python scripts/gpu_checks.py [--device cpu] [FILE]``.

They take less than four minutes. Where there is no CUDA nothing is checked, which is said; the exit
code is then 5. With ``--device cpu`` the same checks run on the processor, to try them out. PyTorch
may be of any version, so warnings fail nothing.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 240
NOTHING_CHECKED = 5


def main() -> int:
    """Run them; the exit code is that of pytest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="where the table goes too")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    import torch  # noqa: PLC0415 (--help must not wait for it)

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("no CUDA here: nothing was checked; --device cpu tries the checks out\n")
        return NOTHING_CHECKED
    name = torch.cuda.get_device_name() if options.device == "cuda" else "the processor"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "tests/gpu", "--device", options.device,
                   f"--junit-xml={report}", "-p", "no:cacheprovider", "-W", "default"]  # fmt: skip
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    seconds = time.monotonic() - began
    text = table(cases, f"{name}, torch {torch.__version__}", seconds)
    sys.stdout.write(text)
    if options.file is not None:
        options.file.write_text(text, encoding="utf-8")
    return code


def table(cases: list[ET.Element], machine: str, seconds: float) -> str:
    """Markdown of what was checked, the outcome and the seconds of each."""
    lines = [f"Checks on {machine}:", "", "| check | outcome | s |", "|---|---|---|"]
    for case in cases:
        words = str(case.get("name")).removeprefix("test_").replace("_", " ")
        bad = next((part for part in case if part.tag in {"failure", "error", "skipped"}), None)
        outcome = "holds" if bad is None else bad.tag
        lines.append(f"| {words} | {outcome} | {float(case.get('time', 0)):.1f} |")
    late = "" if seconds < LIMIT_S else f", longer than {LIMIT_S} s"
    return "\n".join([*lines, "", f"In all {seconds:.0f} s{late}.", ""])


if __name__ == "__main__":
    raise SystemExit(main())
