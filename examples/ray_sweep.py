"""A Ray Tune sweep beside one shared store: trials learn from one another which seeds pay."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from ray import tune
from torch import nn

import esper
from esper.runs.own_runs import list_runs
from esper.tasks import TASKS

EPOCHS = 5


def loss_fn(model, batch):
    """One loss per example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def train(settings):
    """Train one network that grows, in a process of Ray's."""
    torch.manual_seed(0)
    data = TASKS.create("digits").load()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    model = esper.wrap(net, layers=["1", "3"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"])
    given = {"loss_fn": loss_fn, "holdout": [data.validation], "store": settings["store"]}
    with esper.Tamiyo(model, optimizer, scope="digits", **given) as tamiyo:
        for epoch in range(EPOCHS):
            for chosen in torch.randperm(384).split(64):
                batch = data.train[0][chosen], data.train[1][chosen]
                optimizer.zero_grad()
                loss_fn(model, batch).mean().backward()
                optimizer.step()
                tamiyo.on_batch_end(batch)
            loss = tamiyo.on_epoch_end(epoch).holdout_loss
    return {"loss": loss}


with TemporaryDirectory() as folder:  # of yours: a file, or redis:// for several machines
    store = f"sqlite:///{Path(folder, 'history.db')}"
    space = {"lr": tune.grid_search([1e-3, 1e-2]), "store": store}
    config = tune.RunConfig(storage_path=folder, verbose=0)
    results = tune.Tuner(train, param_space=space, run_config=config).fit()
    for run in list_runs(store):
        words = f"{run.epochs} epochs, grafts: {run.kept} kept, {run.culled} ended otherwise"
        print(f"run {run.run}: {words}; {run.end}")
    best = results.get_best_result("loss", "min")
    print(f"best held-out loss: {best.metrics['loss']:.4f} at lr {best.config['lr']:g}")
