"""A toy in the Trainer of transformers."""

from pathlib import Path
from typing import Any

from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from esper.integrations.transformers import Growth
from esper.testing import integration_laws as laws
from esper.testing.integration_laws import Toy, Trained
from tests.frameworks import rate


class Averaging(TrainerCallback):
    """An average of the weights, in a callback of the user's."""

    def __init__(self, model: Any) -> None:
        self.model, self.average = model, laws.averaged(model)

    @override
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.average.update_parameters(self.model)


class Ordered(Trainer):
    """A Trainer with the toy's order of batches, optimizer and scheduler."""

    toy: Toy

    @override
    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    @override
    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = laws.adam(self.model)  # type: ignore[arg-type]
        return self.optimizer

    @override
    def create_scheduler(self, *_: Any, **__: Any) -> Any:
        self.lr_scheduler = rate(self.toy)(self.optimizer)
        return self.lr_scheduler


def train(toy: Toy, folder: Path) -> Trained:
    model = toy.model()
    averaging = [Averaging(model)] if toy.average else []
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=toy.epochs,
        per_device_train_batch_size=laws.SIZE,
        gradient_accumulation_steps=toy.accumulate,
        max_grad_norm=laws.CLIP if toy.clip else 0.0,
        bf16=toy.bfloat16,
        use_cpu=True,
        max_steps=toy.batches or -1,
        save_strategy="steps" if toy.batches else "epoch",
        save_steps=toy.batches or 500,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        label_names=["targets"],
    )
    callbacks: list[Any] = list(averaging)
    trainer = Ordered(model, arguments, train_dataset=toy.examples, callbacks=callbacks)
    trainer.toy = toy
    growth = Growth(trainer, **toy.growth)
    trainer.train(resume_from_checkpoint=True if toy.resume else None)
    average = averaging[0].average if averaging else None
    return laws.trained(growth, model, trainer.optimizer, average)
