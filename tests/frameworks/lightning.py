"""A toy in Lightning's Trainer."""

import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from esper.integrations.lightning import Growth
from esper.testing import integration_laws as laws
from esper.testing.integration_laws import Toy, Trained
from tests.frameworks import loader, rate


class Lit(LightningModule):
    """A user's module, without a word of Esper's."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.net = toy.model().net
        self.toy = toy

    @override
    def forward(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    @override
    def training_step(self, batch: Any, _: int) -> Any:
        return laws.loss_fn(self, batch).mean()

    @override
    def validation_step(self, batch: Any, _: int) -> None:
        assert not self.training

    @override
    def configure_optimizers(self) -> Any:
        optimizer = laws.adam(self)
        scheduler = {"scheduler": rate(self.toy)(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def train(toy: Toy, folder: Path) -> Trained:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    growth, module = Growth(**toy.growth), Lit(toy)
    average = EMAWeightAveraging(decay=laws.DECAY) if toy.average else None
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=toy.epochs,
        max_steps=toy.batches or -1,
        callbacks=[
            growth,
            ModelCheckpoint(folder, save_last=True, every_n_train_steps=1),
            *([average] if average else []),
        ],
        accumulate_grad_batches=toy.accumulate,
        gradient_clip_val=laws.CLIP if toy.clip else None,
        precision="bf16-mixed" if toy.bfloat16 else "32-true",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # of torchrun
    )
    train_batches, held_out = loader(toy.train), loader(toy.holdout)
    path = folder / "last.ckpt" if toy.resume else None
    trainer.fit(module, train_batches, held_out, ckpt_path=path)
    average_model = average._average_model if average else None
    return laws.trained(growth, module, trainer.optimizers[0], average_model)
