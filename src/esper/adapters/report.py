"""Worth of each kernel of an adapted model, and the held-out loss against their parameters."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.adapters.switching import current
from esper.contracts.errors import ConfigError
from esper.execution.kernel import count_parameters
from esper.execution.passes.isolation import LossFn, example_losses
from esper.execution.side_effect_free import side_effect_free

ENOUGH = 2.0
"""Standard errors that the kernels past a bend are worth together, at most."""


@final
@dataclass(frozen=True, slots=True)
class KernelWorth:
    """A kernel, and the fall of the held-out loss, > 0 if it helps, by having it beside the others.

    Attributes:
        layer: Name of its layer.
        kernel_id: Its id.
        parameters: Its parameters.
        gain: Mean over the examples of the loss without it, less the loss with all.
        stderr: Paired standard error of the gain.
    """

    layer: str
    kernel_id: str
    parameters: int
    gain: float
    stderr: float


@final
@dataclass(frozen=True, slots=True)
class Size:
    """Held-out loss with the first kernels alone, and what the others would add.

    Attributes:
        kernels: How many there are.
        parameters: Theirs together.
        loss: Mean held-out loss.
        left: Fall of the loss by the kernels that are left out, together.
        stderr: Paired standard error of ``left``.
    """

    kernels: int
    parameters: int
    loss: float
    left: float
    stderr: float


@final
@dataclass(frozen=True, slots=True)
class AdapterReport:
    """Worth of the kernels and the curve of the held-out loss against their parameters; print it.

    Attributes:
        kernels: By gain per parameter, descending.
        curve: The loss with none of them, the first, the first two and so on.
    """

    kernels: tuple[KernelWorth, ...]
    curve: tuple[Size, ...]

    @property
    def bend(self) -> Size:
        """Smallest size past which all that is left is not worth two standard errors together."""
        return next(size for size in self.curve if not size.left > ENOUGH * size.stderr)

    @override
    def __str__(self) -> str:
        width = max(len(kernel.kernel_id) for kernel in self.kernels)
        head = f"{'kernel':{width}}  parameters  worth ± error      in all  held-out loss"
        rows = [
            f"{kernel.kernel_id:{width}}  {kernel.parameters:10,}  "
            f"{kernel.gain:+.4f} ± {kernel.stderr:.4f}  {size.parameters:8,}  {size.loss:.4f}"
            for kernel, size in zip(self.kernels, self.curve[1:], strict=True)
        ]
        none = f"{'none':{width}}  {0:10,}  {'':16}  {0:8,}  {self.curve[0].loss:.4f}"
        return "\n".join([head, none, *rows, self._bends()])

    def _bends(self) -> str:
        bend, last = self.bend, self.curve[-1]
        if bend is last:
            return (
                "no bend: the last kernel is still worth more than its error, so a larger budget "
                "may pay"
            )
        others = f"the other {last.kernels - bend.kernels}"
        return (
            f"the curve bends at {bend.parameters:,} parameters in {bend.kernels} kernel(s): "
            f"{others if bend.kernels else 'all'}, of {last.parameters - bend.parameters:,}, are "
            f"together worth {bend.left:+.4f} ± {bend.stderr:.4f}"
        )


def adapter_report(model: nn.Module, *, loss_fn: LossFn, holdout: Iterable[Any]) -> AdapterReport:
    """Measure what each kernel of the adapter that is on is worth, and how many are needed.

    Kernels are taken away and nothing is trained again: a smaller adapter that trains by itself
    should do better than the curve says. They are put in order by the same examples, so of many
    that are worth little the first look better than they are. Takes two passes over the holdout for
    each kernel; the model is left as it was.

    Args:
        model: An adapted model, or one with absorbed kernels; its head stays as it is.
        loss_fn: As of `esper.Tamiyo`.
        holdout: As of `esper.Tamiyo`.

    Raises:
        ConfigError: if there is no kernel, or no batch.
        LifecycleError: if a kernel is being blended in; ``tamiyo.finish()`` ends the adaptation.
    """
    held = [(name, one) for name, of in current(model).kernels.items() for one in of]
    if not held:
        raise ConfigError("the model has no kernels to report on; adapt it first by esper.adapt")
    everyone = list(range(len(held)))
    without = [[other for other in everyone if other != one] for one in everyone]
    kernels = [kernel for _, (kernel, _) in held]
    full, *offs = _losses(model, kernels, [everyone, *without], loss_fn, holdout)
    found = []
    for (name, (kernel, record)), off in zip(held, offs, strict=True):
        size = count_parameters(kernel)
        found.append(KernelWorth(name, str(record["kernel_id"]), size, *_mean(off - full)))
    order = sorted(everyone, key=lambda one: -found[one].gain / max(1, found[one].parameters))
    subsets = [order[:count] for count in everyone]
    losses = [*_losses(model, kernels, subsets, loss_fn, holdout), full]
    sizes = accumulate((found[one].parameters for one in order), initial=0)
    curve = tuple(
        Size(count, size, float(loss.mean()), *_mean(loss - full))
        for count, (size, loss) in enumerate(zip(sizes, losses, strict=True))
    )
    return AdapterReport(tuple(found[one] for one in order), curve)


def _losses(
    model: nn.Module,
    kernels: Sequence[nn.Module],
    subsets: Sequence[Sequence[int]],
    loss_fn: LossFn,
    holdout: Iterable[Any],
) -> list[Tensor]:
    """Losses of the examples with each of the subsets of the kernels alone."""
    found: list[list[Tensor]] = [[] for _ in subsets]
    with side_effect_free(model, training=False, reads=holdout), torch.no_grad():
        for batch in holdout:
            for losses, subset in zip(found, subsets, strict=True):
                with side_effect_free(model), _only(kernels, set(subset)):
                    losses.append(example_losses(loss_fn, model, batch).double())
    if not all(found):
        raise ConfigError("holdout has no batches; give one or more that are never trained on")
    return [torch.cat(losses) for losses in found]


@contextmanager
def _only(kernels: Sequence[nn.Module], wanted: set[int]) -> Iterator[None]:
    """Let the other kernels add zero; were they taken out, averages of the model would follow."""
    handles = [
        kernel.register_forward_hook(_zero)
        for index, kernel in enumerate(kernels)
        if index not in wanted
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero(kernel: nn.Module, args: Any, output: Tensor) -> Tensor:
    del kernel, args
    return torch.zeros_like(output)


def _mean(differences: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    count = len(differences)
    stderr = float(differences.std()) / sqrt(count) if count > 1 else float("inf")
    return float(differences.mean()), stderr
