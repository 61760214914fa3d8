"""A network that grows in several processes: ``torchrun --nproc-per-node 2 torchrun_loop.py``."""

import os

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from esper.integrations.plain import Growth
from esper.tasks import TASKS

os.environ.setdefault("OMP_NUM_THREADS", "1")
distributed.init_process_group("gloo")
torch.manual_seed(0)
data = TASKS.create("digits").load()
dataset = TensorDataset(*data.train)
sampler = DistributedSampler(dataset, drop_last=True)
loader = DataLoader(dataset, batch_size=32, sampler=sampler)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
replica = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)


def loss_fn(model, batch):
    """One loss per example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


growth = Growth(replica, optimizer, layers=["1", "3"], loss_fn=loss_fn, holdout=[data.validation])
for epoch in range(12):
    sampler.set_epoch(epoch)
    for batch in growth.epoch(loader):
        optimizer.zero_grad()
        loss_fn(replica, batch).mean().backward()
        optimizer.step()
if distributed.get_rank() == 0:
    print(growth.report)
    with torch.no_grad():
        print(f"test loss: {loss_fn(model.eval(), data.test).mean():.4f}")
distributed.destroy_process_group()
