"""Example: a model and a batch, run on the side as often as needed."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from esper.execution.concealed import every_module
from esper.execution.passes.batches import copied, tensors_in
from esper.execution.passes.isolation import LossFn
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode


@final
@dataclass(frozen=True, slots=True)
class Example:
    """A model and what it runs on.

    Attributes:
        model: The model; it is left as it was.
        batch: As ``loss_fn`` takes it, or else as the model does: a tensor, a tuple or list of
            positional arguments, or a mapping of arguments by name.
        loss_fn: Losses of the model on a batch.
    """

    model: nn.Module
    batch: Any
    loss_fn: LossFn | None

    def run(self, inside: AbstractContextManager[Any] | None = None, *, training: bool) -> Any:
        """Losses, or what the model returns; without dropout, and with running statistics.

        In training mode, some models have further parts, as auxiliary heads. ``inside`` is entered
        for the pass alone.
        """
        mode = training_like_mode(self.model) if training else False
        with side_effect_free(self.model, training=mode):
            freeze_statistics(self.model)
            for module in every_module(self.model):
                if isinstance(module, _DropoutNd):
                    module.training = False
            batch = copied(self.batch, tensors=True)
            with inside or nullcontext():
                return self._call(batch)

    def fault(self, outputs: Any) -> str:
        """What the batch holds that leaves nothing to see in these outputs; empty if they tell."""
        found = list(tensors_in(outputs))
        if all(t.numel() and not (t.is_floating_point() and t.isnan().any()) for t in found):
            return ""
        for tensor in tensors_in(self.batch):
            held = "no elements" if not tensor.numel() else ""
            if tensor.is_floating_point() and not tensor.isfinite().all():
                held = "values that are NaN or infinite"
            if held:
                return f"has {held}, in a tensor of shape {tuple(tensor.shape)}"
        return ""

    def _call(self, batch: Any) -> Any:
        if self.loss_fn is not None:
            return self.loss_fn(self.model, batch)
        if isinstance(batch, Mapping):
            return self.model(**batch)
        return self.model(*batch) if isinstance(batch, tuple | list) else self.model(batch)
