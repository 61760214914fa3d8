"""Losses of single examples, for models of transformers, whose own loss is a mean."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from esper.contracts.errors import ConfigError
from esper.execution.passes.isolation import LossFn

_IGNORED = -100
"""Label of a token that has no part in the loss."""


def loss_fn_for(model: nn.Module) -> LossFn:
    """Per-example losses by logits and ``labels``, for the kind of model that this one is.

    Raises:
        ConfigError: if it is of no kind that is known.
    """
    kind = f"{getattr(model, 'loss_type', None) or type(model).__name__}"
    losses = next((made for ending, made in _KINDS.items() if kind.endswith(ending)), None)
    if losses is None:
        raise ConfigError(
            f"{type(model).__name__} gives a mean loss, and growth needs one for each example; "
            "give Growth(trainer, loss_fn=lambda model, batch: ...), shape (B,). Known by "
            f"themselves: {', '.join(_KINDS)}"
        )

    def of_examples(model: nn.Module, batch: Mapping[str, Any]) -> Any:
        found = dict(batch)
        labels = found.pop("labels")
        return losses(model(**found).logits, labels)

    return of_examples


def _classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes, (B, C) and (B,); squared error of numbers; binary of (B, C)."""
    if labels.is_floating_point() and labels.shape == logits.shape and logits.ndim > 1:
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        return losses.mean(dim=1)
    if labels.is_floating_point() or logits.shape[-1] == 1:
        return F.mse_loss(logits.float().flatten(), labels.float().flatten(), reduction="none")
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of tokens and their mask, both (B, T)."""
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=_IGNORED, reduction="none"
    )
    return losses, labels != _IGNORED


def _next_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return _tokens(logits[:, :-1], labels[:, 1:])


_KINDS: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "ForSequenceClassification": _classes,
    "ForImageClassification": _classes,
    "ForTokenClassification": _tokens,
    "ForMaskedLM": _tokens,
    "ForCausalLM": _next_tokens,
    "LMHeadModel": _next_tokens,
}
