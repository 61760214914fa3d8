"""A LightningModule that grows: one line, the callback."""

import logging

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esper.integrations.lightning import Growth
from esper.tasks import TASKS

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
data = TASKS.create("digits").load()


class Digits(LightningModule):
    """Six hidden units: far too few, on purpose."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))

    def forward(self, x):
        """Scores of the ten digits."""
        return self.net(x)

    def training_step(self, batch, _):
        """Mean loss of a batch."""
        return loss_fn(self, batch).mean()

    def configure_optimizers(self):
        """AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def loss_fn(module, batch):
    """One loss per example."""
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


growth = Growth(layers=["net.1", "net.3"], loss_fn=loss_fn, holdout=[data.validation])
torch.manual_seed(0)
trainer = Trainer(
    max_epochs=12,
    callbacks=[growth],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
loader = DataLoader(TensorDataset(*data.train), batch_size=64, shuffle=True)
trainer.fit(module := Digits(), loader)
print(growth.report)
with torch.no_grad():
    print(f"test loss: {loss_fn(module.eval(), data.test).mean():.4f}")
