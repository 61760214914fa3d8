"""Lightning: growth as a callback of its Trainer."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

from torch import nn
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.execution.copies.followers import take_in
from esper.integrations.base import Integration, within
from esper.integrations.requirements import require

require("lightning", "2.6.4", extra="lightning", never=("2.6.2", "2.6.3"))

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402 (checked above)


@final
class Growth(Integration, Callback):
    """Growth of a ``LightningModule``.

    ``loss_fn`` gets the module itself, under the Trainer's precision. Checkpoints hold the growth;
    a fresh module and a fresh callback, made in the same way, take it up from ``ckpt_path``.

    Args:
        loss_fn: As for ``Tamiyo``.
        holdout: As for ``Tamiyo``, on the module's device.
        given: Further arguments of `Integration`, and of ``Tamiyo``.

    Example:
        ::

            growth = Growth(layers=["net.fc1"], loss_fn=loss_fn, holdout=holdout)
            trainer = Trainer(callbacks=[growth])
    """

    name: ClassVar[str] = "lightning"
    when: ClassVar[str] = "a LightningModule and its Trainer"

    def __init__(self, *, loss_fn: Any, holdout: Iterable[Any], **given: Any) -> None:
        super().__init__(loss_fn=loss_fn, holdout=holdout, **given)
        self._optimizer_steps = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wrap the module, before a checkpoint is loaded and the optimizer is made."""
        if stage == "fit":
            self.wrap(pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the engine: the optimizers are there, and their states are not loaded yet.

        Averages that other callbacks keep of the model grow with it.
        """
        if not any(one.param_groups for one in trainer.optimizers):
            raise ConfigError(
                f"{type(pl_module).__name__}.configure_optimizers gives no optimizer, and nothing "
                "else could train a kernel; let it return one"
            )
        self.loss_fn = within(trainer.precision_plugin.forward_context, self.loss_fn)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self.begin(pl_module, list(trainer.optimizers), schedulers)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            take_in(callback)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count optimizer steps from here on."""
        self._optimizer_steps = trainer.global_step

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: nn.Module,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Hand the batch on; the last one of an epoch ends it, before validation."""
        self.batch_ended(batch)
        if trainer.global_step != self._optimizer_steps:
            self._optimizer_steps = trainer.global_step
            self.stepped()
        if trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches:
            self.epoch_ended()
