"""A toy trained by several processes: ``python -m tests.frameworks.replicas FOLDER SCENARIO...``.

Each scenario leaves ``FOLDER/SCENARIO.RANK.json``: what the process did, or the error that it ended
with.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import esper
from esper.contracts.errors import EsperError
from esper.execution.replicas.drift import fingerprint
from esper.integrations.plain import Growth
from esper.testing import integration_laws as laws
from esper.testing.integration_laws import Batch, Toy

DIED = 7
"""Exit code of a process that dies on purpose."""

HALF = int(os.environ.get("HALF", "3"))
"""Epochs before a checkpoint."""

STORED = "STORED" in os.environ
"""Whether rank 0 has a store that outlives a run that is taken up."""


class Loop:
    """The plain loop under DistributedDataParallel; each process gets its part of every batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.toy = Toy(norm=False)
        self.model = self.toy.model()
        given = self.toy.growth
        esper.wrap(self.model, given.pop("layers"), given.pop("seeds"))
        self.optimizer = laws.adam(self.model)
        self.ddp = DistributedDataParallel(self.model)
        self.given = given
        self.loss_fn: Callable[[nn.Module, Batch], Tensor] = laws.loss_fn

    def begin(self, **options: Any) -> Growth:
        store = f"sqlite:///{self.folder}/history.db" if options.pop("stored", False) else None
        given = self.given | {"store": store} | options
        self.growth = Growth(self.ddp, self.optimizer, **given)
        return self.growth

    def epoch(self) -> None:
        parts = [self.part(batch) for batch in self.toy.train]
        for batch in self.growth.epoch(parts):
            self.optimizer.zero_grad()
            torch.autograd.backward(self.loss_fn(self.ddp, batch).mean())
            self.optimizer.step()

    def part(self, batch: Batch) -> Batch:
        return {key: value[self.rank :: self.world] for key, value in batch.items()}

    def done(self) -> dict[str, Any]:
        tamiyo = self.growth.tamiyo
        assert tamiyo is not None
        names, sums = fingerprint(self.model)
        tamiyo.journal.flush()
        return {
            "fingerprint": dict(zip(names, sums.tolist(), strict=True)),
            "states": [str(s) for la in tamiyo.layers.values() for s in la.seed_states],
            "log": [[event.kind, dict(event.data)] for event in tamiyo.events()],
            "run": tamiyo.tracker.events.run,
            "broadcast": len(self.ddp.modules_buffers),
        }


def whole(loop: Loop, epochs: int = laws.EPOCHS) -> dict[str, Any]:
    loop.begin()
    for _ in range(epochs):
        loop.epoch()
    return loop.done()


def stored(loop: Loop) -> dict[str, Any]:
    """Rank 0 alone writes the history."""
    loop.begin(stored=True)
    for _ in range(4):
        loop.epoch()
    return loop.done()


def sharded(loop: Loop) -> dict[str, Any]:
    """Each process holds its own part of the holdout."""
    loop.given["holdout"] = [loop.part(batch) for batch in loop.toy.holdout]
    return whole(loop)


def late(loop: Loop) -> dict[str, Any]:
    """Rank 1 is late at every batch of the holdout, by as much as 5 s in all."""
    lag = float(os.environ.get("LAG", "5")) / 60

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        time.sleep(lag * (loop.rank == 1))
        return laws.loss_fn(model, batch)

    loop.given["loss_fn"] = loss_fn
    return whole(loop)


def odd(loop: Loop) -> dict[str, Any]:
    """A step on the side fails in rank 1 alone."""

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        if loop.rank == 1 and getattr(loop, "growth", None) is not None:
            tamiyo = loop.growth.tamiyo
            if tamiyo is not None and tamiyo.grafts.grafts and torch.is_grad_enabled() is False:
                raise RuntimeError("out of memory, as it were")
        return laws.loss_fn(model, batch)

    loop.given["loss_fn"] = loss_fn
    return whole(loop, 5)


def drift(loop: Loop) -> dict[str, Any]:
    """Rank 1 changes a weight by itself."""
    loop.begin()
    for epoch in range(3):
        loop.epoch()
        if epoch == 0 and loop.rank == 1:
            with torch.no_grad():
                list(loop.model.parameters())[-1][0] += 1e-7
    return loop.done()


def alone_in_training(loop: Loop) -> dict[str, Any]:
    """The loop calls the model past its wrapper, so no gradient is reduced."""
    loop.ddp = loop.model  # type: ignore[assignment]
    return whole(loop, 2)


def refused(loop: Loop) -> dict[str, Any]:
    """Rank 1 has a holdout that cannot be used."""
    if loop.rank == 1:
        loop.given["holdout"] = []
    loop.begin()
    return loop.done()


def half(loop: Loop) -> dict[str, Any]:
    """Some epochs, and a checkpoint by rank 0."""
    loop.begin(stored=STORED)
    for _ in range(HALF):
        loop.epoch()
    if loop.rank == 0:
        parts: dict[str, Any] = {"model": loop.model, "growth": loop.growth}
        parts["optimizer"] = loop.optimizer
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state, loop.folder / "checkpoint.pt")
    distributed.barrier()
    return loop.done()


def resumed(loop: Loop) -> dict[str, Any]:
    """The rest of the epochs, in as many processes as there are now."""
    growth = loop.begin(stored=STORED)
    saved = torch.load(loop.folder / "checkpoint.pt", weights_only=True)
    loop.model.load_state_dict(saved["model"])
    growth.load_state_dict(saved["growth"])
    loop.optimizer.load_state_dict(saved["optimizer"])
    for _ in range(HALF, laws.EPOCHS):
        loop.epoch()
    return loop.done()


def troubled(loop: Loop) -> dict[str, Any]:
    """One rank sleeps for 5 s, or is killed, at one of its passes, in training or on the side."""
    trouble = json.loads(os.environ["TROUBLE"])
    passes = loop.folder / f"passes.{loop.rank}"  # nothing in memory: that would be put back

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        with passes.open("ab") as file:
            file.write(b".")
            number = file.tell()
        if loop.rank == trouble["rank"] and number == trouble["pass"]:
            if trouble["killed"]:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(5)
        return laws.loss_fn(model, batch)

    loop.loss_fn = loop.given["loss_fn"] = loss_fn
    return whole(loop)


def killed(loop: Loop) -> dict[str, Any]:
    """Rank 1 dies at the end of the fourth epoch, in a pass over the holdout."""

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        report = loop.growth.report
        if loop.rank == 1 and report is not None and report.epoch == 2 and not model.training:
            os._exit(DIED)
        return laws.loss_fn(model, batch)

    loop.begin()
    assert loop.growth.tamiyo is not None
    loop.growth.tamiyo.training.loss_fn.function = loss_fn  # type: ignore[attr-defined]
    for _ in range(laws.EPOCHS):
        loop.epoch()
    return loop.done()


def in_framework(name: str, folder: Path) -> dict[str, Any]:
    """The toy in a framework's own way of training with several processes."""
    from importlib import import_module  # noqa: PLC0415 (only where it is wanted)

    trained = import_module(f"tests.frameworks.{name}").train(Toy(), folder / name)
    names, sums = fingerprint(trained.model)
    return {
        "fingerprint": dict(zip(names, sums.tolist(), strict=True)),
        "states": [str(s) for la in trained.tamiyo.layers.values() for s in la.seed_states],
        "log": [list(pair) for pair in trained.log()],
        "world": trained.tamiyo.replicas.world,
        "sharded": trained.tamiyo.replicas.sharded,
    }


_LONGEST_S = 390
"""Time after which a process ends itself, whoever started it."""


def main(folder: Path, scenarios: list[str]) -> None:
    signal.alarm(_LONGEST_S)
    rank = os.environ["RANK"]
    for scenario in scenarios:
        if scenario in ("lightning", "transformers", "accelerate"):
            found = in_framework(scenario, folder)
        else:
            if not distributed.is_initialized():
                distributed.init_process_group("gloo")
            try:
                found = globals()[scenario](Loop(folder))
            except EsperError as error:
                found = {"error": f"{type(error).__name__}: {error}"}
        path = folder / f"{scenario}.{rank}.json"
        path.write_text(json.dumps(found), encoding="utf-8")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
