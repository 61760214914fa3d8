"""A trained network that must not change any more still learns, through kernels beside its layers.

It is trained, frozen, grown, hardened into a plain network, saved, and loaded again without Esper.
Run it: python examples/frozen_host.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import esper
from esper.services.tamiyo.settings import config_from
from esper.tasks import TASKS

data = TASKS.create("letter").load()  # 26 letters from 16 measurements, shipped with Esper
train, holdout, test = data.train, [data.validation], data.test


def loss_fn(model, batch):
    """One loss per example."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets, reduction="none")


def batches():
    """The training data once, in a new order."""
    for chosen in torch.randperm(len(train[1])).split(128):
        yield train[0][chosen], train[1][chosen]


def test_loss(model):
    """Mean loss on data that decided nothing."""
    with torch.no_grad():
        return loss_fn(model.eval(), test).mean().item()


# 1. A network that somebody trained, and that has to stay as it is.
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 26))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for _ in range(5):
    for batch in batches():
        optimizer.zero_grad()
        loss_fn(model, batch).mean().backward()
        optimizer.step()
optimizer.zero_grad()
model.requires_grad_(False)
trained = {name: value.clone() for name, value in model.state_dict().items()}
before = test_loss(model)
print(f"trained and frozen: test loss {before:.4f}")

# 2. Let it grow. The optimizer begins empty; Tamiyo gives it every kernel that is blended in.
model = esper.wrap(model, layers=["0", "2"])
optimizer = torch.optim.AdamW([{"params": []}], lr=5e-3)
config = config_from({"growth": {"budget": 800, "warmup_epochs": 0}})
tamiyo = esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=holdout, config=config)
for epoch in range(10):
    model.train()
    for batch in batches():
        loss = loss_fn(model, batch).mean()
        if loss.requires_grad:  # nothing learns before the first kernel is blended in
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tamiyo.on_batch_end(batch)
    print(tamiyo.on_epoch_end(epoch))

# 3. A plain network again: save it, and load it where Esper is not installed.
plain = esper.harden(model)
after = test_loss(plain)
now = {name.replace(".host", ""): value for name, value in plain.state_dict().items()}
unchanged = all(torch.equal(now[name], value) for name, value in trained.items())
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "grown.pt2")
    exported = torch.export.export(
        plain, (test[0],), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(exported, path)
    loaded = torch.export.load(path).module()
same = torch.equal(loaded(test[0][:7]), plain(test[0][:7]))

print(f"grown: test loss {after:.4f}, gain {before - after:.4f}, {tamiyo.used} parameters added")
print(f"the host is {'what it was, bit for bit' if unchanged else 'CHANGED'}")
print(f"saved and loaded: outputs are {'equal' if same else 'DIFFERENT'}")
