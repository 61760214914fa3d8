"""A loop with an Accelerator in which a network grows: two lines, at ``Growth`` and ``epoch``."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esper.integrations.accelerate import Growth
from esper.tasks import TASKS

data = TASKS.create("digits").load()
torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
loader = DataLoader(TensorDataset(*data.train), batch_size=64, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)


def loss_fn(model, batch):
    """One loss per example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


growth = Growth(
    accelerator, model, optimizer, layers=["1", "3"], loss_fn=loss_fn, holdout=[data.validation]
)
for _ in range(12):
    for batch in growth.epoch(loader):
        optimizer.zero_grad()
        accelerator.backward(loss_fn(model, batch).mean())
        optimizer.step()
    print(growth.report)
with torch.no_grad():
    print(f"test loss: {loss_fn(model.eval(), data.test).mean():.4f}")
