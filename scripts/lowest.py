"""Smoke test at the lower bounds of the dependencies that ``pyproject.toml`` promises.

``make test-lowest`` runs it in an environment of its own; ``--pins`` prints exact pins instead.
torch alone stays at the Makefile's build, the one whose CPU wheel is at hand.
"""

# ruff: noqa: PLC0415 (--pins runs before anything is installed)

import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("train", "runs", "inspect", "replay", "ab", "serve", "store", "study", "study effect")


def bounds() -> dict[str, str]:
    """Name of every dependency but torch to its lowest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = (text.partition(",")[0].partition(">=") for text in project["dependencies"])
    return {name: lowest for name, _, lowest in parts if name != "torch"}


def check_versions() -> None:
    """Refuse to run on anything but the bounds."""
    for name, lowest in bounds().items():
        found = version(name)
        if found != lowest and not found.startswith(f"{lowest}."):
            raise SystemExit(f"{name} is {found}, not {lowest}; run: make test-lowest")


def grow() -> None:
    """Wrap a tiny model and see a graft through; its outputs survive hardening."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    import esper
    from esper.stores.memory import MemoryStore

    torch.manual_seed(0)
    inputs, targets = torch.randn(400, 6), torch.randint(3, (400,))
    batches = list(zip(inputs[:200].split(20), targets[:200].split(20), strict=True))

    def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    model = esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), ["0", "2"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    holdout = [(inputs[200:], targets[200:])]
    store = MemoryStore()
    tamiyo = esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=holdout, store=store, seed=0)
    for epoch in range(8):
        for batch in batches:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    tamiyo.tracker.flush()
    if not list(store.read(kinds=["decision"])):
        raise SystemExit("eight epochs, and no seed was chosen")
    plain = esper.harden(model)
    if not torch.allclose(plain(inputs), model(inputs)):
        raise SystemExit("a hardened model gives other outputs")


def choose(folder: Path) -> None:
    """Selector and tracker over an SQLite store; the history is there when it is opened again."""
    from esper.services.tamiyo.performance_tracker import PerformanceDelta, PerformanceTracker
    from esper.services.tamiyo.seed_selector import SeedSelector, SelectionContext
    from esper.stores import open_store
    from esper.strategies import STRATEGIES

    url = f"sqlite:///{folder / 'history.db'}"
    with open_store(url) as store:
        tracker = PerformanceTracker(store=store)
        for name in STRATEGIES.names():
            selector = SeedSelector(STRATEGIES.create(name), tracker=tracker, seed=0)
            for step in range(10):
                seed_idx, _ = selector.select_seed_now(name, [0, 1, 2], SelectionContext(step))
                delta = PerformanceDelta(loss_delta=0.01 * seed_idx)
                tracker.update_metrics_now(name, seed_idx, delta)
        tracker.flush()
    with open_store(url) as store:
        found = len(list(store.read(kinds=["outcome"])))
    if found != 10 * len(STRATEGIES.names()):
        raise SystemExit(f"{found} outcomes in the SQLite store, 10 of each strategy were written")


def command_line(folder: Path) -> None:
    """Help of every command, a list, and a short run."""
    commands = (
        "--help",
        "--version",
        *(f"{name} --help" for name in NAMES),
        "strategies",
        f"train digits --epochs 3 --runs {folder}",
        f"inspect digits-s0 --runs {folder}",
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "esper", *command.split()],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"esper {command} failed:\n{done.stderr}")


def main() -> None:
    """Run the smoke test, or print the pins."""
    if "--pins" in sys.argv:
        sys.stdout.writelines(f"{name}=={lowest}\n" for name, lowest in bounds().items())
        return
    check_versions()
    grow()
    with tempfile.TemporaryDirectory() as folder:
        choose(Path(folder))
        command_line(Path(folder))
    tested = ", ".join(f"{name} {version(name)}" for name in ("torch", *bounds()))
    sys.stdout.write(f"works with {tested}\n")


if __name__ == "__main__":
    main()
