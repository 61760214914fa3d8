"""Time of a run in 2 and 4 processes beside plain DistributedDataParallel, nothing active.

Both loops take turns batch by batch, in an order that alternates and is the same in every process.
Times are of rank 0 on the wall, since most of a batch is waiting for the others; a ratio is the
median over the pairs of an epoch, with the least and the largest epoch. Hosts are those of
``benchmarks.overhead``. Takes some minutes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.overhead import BATCHES, EPOCHS, Host, Loop, growth, hosts

WORLDS = (2, 4)

Found = dict[str, dict[str, list[float]]]
"""Ratios of every epoch, by host and by what is timed."""


def compare(host: Host) -> dict[str, list[float]]:
    """Ratios of batches and of whole epochs; every process calls it."""
    plain = Loop(host, replicate=DistributedDataParallel).activate(0)
    ours = Loop(host, growth(), replicate=DistributedDataParallel).activate(0)
    found: dict[str, list[float]] = {"batch": [], "epoch": []}
    for _ in range(EPOCHS):
        pairs = []
        for number in range(BATCHES):
            first, second = (ours, plain) if number % 2 else (plain, ours)
            one, two = _seconds(first.step), _seconds(second.step)
            pairs.append((one, two) if number % 2 else (two, one))
        ours_s, plain_s = (sum(times) for times in zip(*pairs, strict=True))
        plain_s += _seconds(plain.end)
        ours_s += _seconds(ours.end)
        found["batch"].append(median(mine / base for mine, base in pairs))
        found["epoch"].append(ours_s / plain_s)
    return found


def _seconds(run: Callable[[], None]) -> float:
    distributed.barrier()
    started = perf_counter()
    run()
    return perf_counter() - started


def rows() -> list[tuple[str, str, str]]:
    """Ratios to plain replicas, of a batch and of an epoch with its end."""
    found = []
    for world in WORLDS:
        ratios = _launched(world)
        for name, of_host in ratios.items():
            for what, goal in (("batch", "<= 1.03 x"), ("epoch", "plain validates too")):
                row = (f"{world} replicas, {name}: {what}", _spread(of_host[what]), goal)
                print(*row, sep=" | ", file=sys.stderr, flush=True)
                found.append(row)
    return found


def _launched(world: int) -> Found:
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        subprocess.run(
            [*command, "-m", "benchmarks.replicas", folder],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        ratios: Found = json.loads((Path(folder) / "ratios.json").read_text())
        return ratios


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.3f} x [{min(ratios):.3f}, {max(ratios):.3f}]"


def main(folder: Path) -> None:
    """Measure, as one of the processes; rank 0 writes what it found."""
    distributed.init_process_group("gloo")
    ratios = {host.name: compare(host) for host in hosts()}
    if distributed.get_rank() == 0:
        (folder / "ratios.json").write_text(json.dumps(ratios))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
