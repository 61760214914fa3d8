"""A toy in a plain loop, by ``Growth.epoch``."""

from pathlib import Path

import torch
from torch import nn

from esper.integrations.plain import Growth
from esper.testing import integration_laws as laws
from esper.testing.integration_laws import Toy, Trained
from tests.frameworks import rate


def train(toy: Toy, folder: Path) -> Trained:
    model = toy.model()
    optimizer = laws.adam(model)
    scheduler = rate(toy)(optimizer)
    average = laws.averaged(model) if toy.average else None
    given = toy.growth | {"loss_fn": laws.cast(toy)}
    growth = Growth(model, optimizer, scheduler=scheduler, **given)
    path, done = folder / "checkpoint.pt", 0
    parts = {"model": model, "growth": growth, "optimizer": optimizer, "scheduler": scheduler}
    if toy.resume:
        saved = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        done = saved["batches"]
    last = toy.batches or toy.epochs * laws.BATCHES
    while done < last:
        model.train()
        for batch in growth.epoch(toy.train[done % laws.BATCHES :]):
            torch.autograd.backward(laws.cast(toy)(model, batch).mean() / toy.accumulate)
            done += 1
            if done % toy.accumulate == 0:
                if toy.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), laws.CLIP)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update_parameters(model)
            if done == toy.batches:
                break
    growth.settle()
    folder.mkdir(exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"batches": done, **state}, path)
    return laws.trained(growth, model, optimizer, average)
