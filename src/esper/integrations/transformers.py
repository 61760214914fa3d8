"""Transformers: growth of what a ``Trainer`` trains."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

from torch import nn
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.execution import checkpoint
from esper.integrations.base import Integration, within
from esper.integrations.per_example import loss_fn_for
from esper.integrations.requirements import require

require("transformers", "5.0", extra="transformers")

from transformers import (  # noqa: E402 (checked above)
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

FILE = "esper.safetensors"
"""Name of the file with the growth in a folder of a checkpoint."""


@final
class Growth(Integration, TrainerCallback):
    """Growth of what a ``Trainer`` trains.

    Checkpoints hold the growth: wrap a fresh model in the same way, make a fresh Trainer and a
    fresh ``Growth``, and call ``trainer.train(resume_from_checkpoint=...)``.

    Args:
        trainer: Its batches are handed on as they were trained on.
        loss_fn: As for ``Tamiyo``. By default the losses of the examples by logits and labels, for
            the kinds of model that `loss_fn_for` knows.
        holdout: As for ``Tamiyo``; by default the batches of the Trainer's ``eval_dataset``.
        given: Further arguments of `Integration`, and of ``Tamiyo``.

    Raises:
        ConfigError: if there is no holdout, or no ``loss_fn`` for a model of this kind.

    Example:
        ::

            trainer = Trainer(model, args, train_dataset=..., eval_dataset=...)
            Growth(trainer, layers=["*.mlp"])
    """

    name: ClassVar[str] = "transformers"
    when: ClassVar[str] = "a Trainer of Hugging Face, or a subclass"

    def __init__(
        self,
        trainer: Trainer,
        *,
        loss_fn: Any = None,
        holdout: Iterable[Any] | None = None,
        **given: Any,
    ) -> None:
        model: Any = trainer.model
        if holdout is None:
            holdout = _held_out(trainer)
        super().__init__(loss_fn=loss_fn or loss_fn_for(model), holdout=holdout, **given)
        self.trainer = trainer
        self._batch: Any = None
        self.wrap(model)
        self.loss_fn = within(trainer.compute_loss_context_manager, self.loss_fn)
        # A callback is not given the batch, nor a chance before the optimizer's state is loaded.
        patched: Any = trainer
        patched.training_step = partial(self._step, trainer.training_step)
        patched._load_optimizer_and_scheduler = partial(
            self._load, trainer._load_optimizer_and_scheduler
        )
        trainer.add_callback(self)

    def _step(
        self, step: Any, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        self._batch = dict(self.trainer._prepare_inputs(dict(inputs)))
        return step(model, inputs, *args, **kwargs)

    def _load(self, load: Any, folder: str | None) -> None:
        """Take up the growth of a checkpoint, before the states of optimizer and scheduler."""
        self.tamiyo = None
        if folder is not None:
            path = Path(folder) / FILE
            if not path.exists():
                raise ConfigError(
                    f"{folder} has no {FILE}: the checkpoint is of a training without Growth, or "
                    "of one that saved only the model; resume it without Growth"
                )
            self.load_state_dict(checkpoint.load(path))
            self._make()
        load(folder)

    def _make(self) -> None:
        trainer: Any = self.trainer
        self.begin(trainer.model, trainer.optimizer, trainer.lr_scheduler)

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the engine, unless a checkpoint was loaded."""
        if self.tamiyo is None or state.global_step == 0:
            self._make()

    @override
    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand on a batch after which the optimizer did not step."""
        self.batch_ended(self._batch)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand on the batch; the last one of an epoch ends it, before evaluation and saving."""
        self.batch_ended(self._batch)
        self.stepped()
        if state.epoch is not None and state.epoch == round(state.epoch):
            self.epoch_ended()

    @override
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the growth to the checkpoint that was just written."""
        if state.is_world_process_zero and self.tamiyo is not None:
            folder = Path(self.trainer._get_output_dir(trial=None))
            checkpoint.save(folder / f"checkpoint-{state.global_step}" / FILE, self.state_dict())


def _held_out(trainer: Trainer) -> Iterable[Any]:
    found = trainer.eval_dataset
    if found is None:
        raise ConfigError(
            "the Trainer has no eval_dataset, and growth is judged on examples that are never "
            "trained on; give it one, or Growth(trainer, holdout=[...])"
        )
    if isinstance(found, Mapping):
        raise ConfigError(
            "the Trainer has several eval_datasets; choose one: "
            f"Growth(trainer, holdout=list(trainer.get_eval_dataloader({next(iter(found))!r})))"
        )
    return [dict(batch) for batch in trainer.get_eval_dataloader()]
