"""A network of your own, in a loop of your own, that grows where it pays."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

import esper
from esper.tasks import TASKS

EPOCHS = 24
data = TASKS.create("digits").load()  # 8x8 pictures of handwritten digits, shipped with Esper
train, holdout = data.train, [data.validation]


class Net(nn.Module):
    """Six hidden units: far too few, on purpose."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 6), nn.Linear(6, 10)

    def forward(self, x):
        """Scores of the ten digits."""
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def loss_fn(model, batch):
    """One loss per example: that is all Esper asks of a training loop."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def fit(model, *, grow):
    """Train, and return the loss on data that decided nothing."""
    torch.manual_seed(0)  # the same batches for both
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    tamiyo = esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=holdout) if grow else None
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(train[1])).split(64):
            batch = train[0][chosen], train[1][chosen]
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            if tamiyo:
                tamiyo.on_batch_end(batch)
        if tamiyo:
            print(tamiyo.on_epoch_end(epoch))
    with torch.no_grad():
        return loss_fn(model.eval(), data.test).mean().item()


torch.manual_seed(0)
control = Net()
model = esper.wrap(deepcopy(control), layers=["fc1", "fc2"])
grown, plain = fit(model, grow=True), fit(control, grow=False)
print(f"test loss: {plain:.4f} without growth, {grown:.4f} with it, gain: {plain - grown:.4f}")
sizes = (sum(p.numel() for p in net.parameters()) for net in (control, esper.harden(model)))
print("parameters:", *sizes)
