"""An Optuna sweep beside one shared store: trials learn from one another which seeds pay."""

from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import torch
import torch.nn.functional as F
from torch import nn

import esper
from esper.runs.own_runs import list_runs
from esper.tasks import TASKS

EPOCHS, TRIALS = 6, 4
data = TASKS.create("digits").load()
train = [part[:384] for part in data.train]


def loss_fn(model, batch):
    """One loss per example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def objective(trial, store):
    """Train one network that grows; a trial that is pruned leaves no choice open."""
    torch.manual_seed(trial.number)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    model = esper.wrap(net, layers=["1", "3"])
    rate = trial.suggest_float("lr", 1e-4, 3e-2, log=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    given = {"loss_fn": loss_fn, "holdout": [data.validation], "seed": trial.number}
    with esper.Tamiyo(model, optimizer, store=store, scope="digits", **given) as tamiyo:
        for epoch in range(EPOCHS):
            for chosen in torch.randperm(len(train[1])).split(64):
                batch = train[0][chosen], train[1][chosen]
                optimizer.zero_grad()
                loss_fn(model, batch).mean().backward()
                optimizer.step()
                tamiyo.on_batch_end(batch)
            loss = tamiyo.on_epoch_end(epoch).holdout_loss
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
    return loss


with TemporaryDirectory() as folder:  # of yours: a file that outlives the sweep
    store = f"sqlite:///{Path(folder, 'history.db')}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2),
    )
    study.optimize(lambda trial: objective(trial, store), n_trials=TRIALS)
    for trial, run in zip(study.trials, list_runs(store), strict=True):
        words = f"{run.epochs} epochs, grafts: {run.kept} kept, {run.culled} ended otherwise"
        print(f"trial {trial.number} {trial.state.name.lower()}: {words}; {run.end}")
    print(f"best held-out loss: {study.best_value:.4f} at lr {study.best_params['lr']:.4f}")
