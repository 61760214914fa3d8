"""A short run on real data, the same everywhere: its event log is kept beside this file.

If a change is meant to change what a run does, write the log anew, and say in the commit why::

    python -m tests.golden.letter_run --write

It trains in float64, so that processors that round differently still take the same decisions.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.services.tamiyo.settings import config_from
from esper.tasks import TASKS

LOG = Path(__file__).with_name("letter.jsonl")
LAYERS, SEEDS = ("fc1", "fc2", "fc3"), ("bottleneck", "gate", "glu")
EPOCHS = 12
EXAMPLES = 1024
BATCH_SIZE = 64
SETTINGS = {
    "growth": {"budget": 600, "train_epochs": 1, "probe_every": 10, "keep_stderrs": 1.5},
    "seed_selection": {"strategy": "thompson", "constraints": {"min_dormant_epochs": 2}},
}


def lines() -> Iterator[str]:
    """The event log of the run, one event a line."""
    task = TASKS.create("letter")
    data = task.load()
    inputs, targets = (part[:EXAMPLES] for part in data.train)
    holdout = [(data.validation[0][:600], data.validation[1][:600])]
    model = esper.wrap(task.host(0).double(), LAYERS, SEEDS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tamiyo = esper.Tamiyo(
        model,
        optimizer,
        loss_fn=_losses,
        accuracy_fn=_hits,
        holdout=holdout,
        config=config_from(SETTINGS),
        scope="letter",
        run="golden",
    )
    shuffled = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        for chosen in torch.split(torch.randperm(EXAMPLES, generator=shuffled), BATCH_SIZE):
            batch = (inputs[chosen], targets[chosen])
            optimizer.zero_grad()
            _losses(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    for event in tamiyo.events():
        yield json.dumps(asdict(event), sort_keys=True)


def _losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0].double()), batch[1], reduction="none")


def _hits(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    guesses: Tensor = model(batch[0].double()).argmax(dim=1)
    return (guesses == batch[1]).double()


if __name__ == "__main__":
    text = "".join(f"{line}\n" for line in lines())
    if "--write" in sys.argv:
        LOG.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
