"""MiniLM adapted to short opinions of films: grown kernels beside LoRA and fine-tuning.

400 rated sentences, five epochs; the three lower layers never change and are computed once. Rates
are chosen for every method on run seeds 100 to 102, by held-out loss. Differences are to LoRA of
rank 1, paired by run seed, with bootstrap 95 % intervals. Takes two hours of one core.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from benchmarks.minilm import DOWNLOAD

if TYPE_CHECKING:
    from benchmarks.minilm.methods import Method, Parts, Upper
    from benchmarks.transfer import Run

TUNED_ON = range(100, 103)
TESTED = 2000
RATES = {
    "LoRA r = 1": (2.5e-4, 5e-4, 1e-3, 3e-3),
    "grown, as many": (5e-4, 1e-3, 3e-3),
    "grown, a third": (5e-4, 1e-3, 3e-3),
    "size found": (5e-4, 1e-3, 3e-3),
    "LoRA r = 8": (3e-4, 1e-3, 3e-3),
    "linear probe": (3e-3, 1e-2, 3e-2),
    "full fine-tuning": (1e-5, 3e-5, 1e-4),
}
"""Methods, and the learning rates that are tried for each."""


def parser() -> argparse.ArgumentParser:
    """Command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks minilm",
        description=__doc__,
        epilog=f"Fill the folder with: {DOWNLOAD}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", type=Path, nargs="?", default=Path("minilm"),
                      help="where the packages are; default: %(default)s")  # fmt: skip
    made.add_argument("--seeds", type=int, default=10, help="run seeds; default: %(default)s")
    made.add_argument("--out", type=Path, metavar="FILE", help="write every run into this file")
    return made


def main(arguments: Sequence[str]) -> None:
    """Train, and print a table."""
    asked = parser().parse_args(arguments)
    from rich.console import Console  # noqa: PLC0415 (--help does not wait for it)
    from rich.table import Table  # noqa: PLC0415

    from benchmarks.minilm import methods  # noqa: PLC0415
    from benchmarks.minilm.dormant import rows as dormant_rows  # noqa: PLC0415
    from benchmarks.minilm.sentences import load  # noqa: PLC0415
    from benchmarks.transfer import table  # noqa: PLC0415
    from esper.runs.train import one_thread  # noqa: PLC0415

    known = {
        "LoRA r = 1": methods.lora(1),
        "grown, as many": methods.grown(1.0),
        "grown, a third": methods.grown(0.33),
        "size found": methods.grown(None),
        "LoRA r = 8": methods.lora(8),
        "linear probe": methods.tuned(full=False),
        "full fine-tuning": methods.tuned(full=True),
    }
    found: dict[tuple[str, str], list[Run]] = {}
    with one_thread():
        model, sentences = load(asked.folder, 2 * TESTED + 2 * methods.EXAMPLES)
        upper = methods.Upper(model)
        parts = {
            seed: methods.parts_of(sentences, seed, TESTED)
            for seed in (*TUNED_ON, *range(asked.seeds))
        }
        for name, method in known.items():
            rate = _best_rate(name, method, upper, parts)
            for seed in range(asked.seeds):
                run = measure(method, upper, parts[seed], seed, rate)
                found.setdefault(("minilm", name), []).append(run)
                _tell(name, seed, rate, run)
        dormant = dormant_rows(upper, parts[0])
    if asked.out is not None:
        data = {name: [astuple(run) for run in runs] for (_, name), runs in found.items()}
        asked.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    shown = Table("measure", "value", "beside LoRA r = 1", title="minilm", title_justify="left")
    for row in [*table(found), *dormant]:
        shown.add_row(*row)
    Console().print(shown)


def measure(method: "Method", upper: "Upper", parts: "Parts", seed: int, rate: float) -> "Run":
    """One adaptation by one method."""
    import torch  # noqa: PLC0415

    from benchmarks.minilm.methods import losses  # noqa: PLC0415
    from benchmarks.transfer import Run  # noqa: PLC0415

    begun = process_time()
    model, parameters = method(upper, parts, seed, rate)
    seconds = process_time() - begun
    with torch.no_grad():
        model.eval()
        scores = torch.cat([model(*batch[:2]) for batch in parts.test])
        targets = torch.cat([batch[2] for batch in parts.test])
        held_out = float(torch.cat([losses(model, batch) for batch in parts.validation]).mean())
    hits = (scores.argmax(1) == targets).float()
    loss = float(torch.nn.functional.cross_entropy(scores, targets))
    return Run(loss, float(hits.mean()) * 100, held_out, parameters, seconds)


def _best_rate(name: str, method: "Method", upper: "Upper", parts: "dict[int, Parts]") -> float:
    held_out = {
        rate: sum(measure(method, upper, parts[seed], seed, rate).held_out for seed in TUNED_ON)
        for rate in RATES[name]
    }
    print(name, held_out, file=sys.stderr, flush=True)
    return min(held_out, key=lambda rate: held_out[rate])


def _tell(name: str, seed: int, rate: float, run: "Run") -> None:
    print(name, seed, rate, run, file=sys.stderr, flush=True)
