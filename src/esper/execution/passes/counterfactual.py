"""Counterfactual attribution: held-out loss without a seed minus with it, on the same examples.

Batch-norm statistics are estimated anew for each of the two, because those that the model carries
belong to the path that it trained on and flatter it (3.6-fold on one task).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.contracts.errors import ConfigError
from esper.execution.passes.isolation import LossFn, example_losses
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import side_effect_free

Share = Callable[[Callable[[], Tensor]], Tensor]
"""Takes what makes the losses of this process, and gives those that count."""

Shown = tuple[Seeded, int, bool]
"""Layer, seed, and whether it is at full strength or absent in a pass."""


def _own(make: Callable[[], Tensor]) -> Tensor:
    return make()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Effect of one seed on the held-out loss.

    Attributes:
        gain: Mean over examples of loss off minus loss on; > 0 means that the seed helps.
        stderr: Paired standard error of ``gain``, over examples.
        loss_off: Mean loss without the seed.
        loss_on: Mean loss with the seed at full strength.
        examples: Number of examples.
    """

    gain: float
    stderr: float
    loss_off: float
    loss_on: float
    examples: int


def counterfactual(
    model: nn.Module,
    layer: Seeded,
    seed_idx: int,
    *,
    loss_fn: LossFn,
    holdout: Iterable[Any],
    calibration: Sequence[Any] = (),
    share: Share = _own,
) -> Effect:
    """Judge one seed of a layer, which has a kernel and may be in any state, on held-out data.

    ``holdout`` has batches that are never trained on. It is iterated once, and each batch goes
    through the model without the seed and with it, from one random state: so the examples are the
    same, however the holdout shuffles. ``calibration`` has training batches for estimating
    batch-norm statistics, if the model keeps any. ``share`` makes losses (2, N), without the seed
    and with it, those of all processes.

    Raises:
        ConfigError: if the holdout has no batches, or a batch gives other examples the second time.
    """
    given = (loss_fn, holdout, calibration, share)
    return counterfactuals(model, [(layer, seed_idx)], *given)[0]


def counterfactuals(
    model: nn.Module,
    seeds: Sequence[tuple[Seeded, int]],
    loss_fn: LossFn,
    holdout: Iterable[Any],
    calibration: Sequence[Any] = (),
    share: Share = _own,
) -> list[Effect]:
    """Judge K >= 1 seeds beside one another, each by itself; as `counterfactual`, for K + 1 passes.

    Where there are several, none of them may be blended in: the pass without them is one.
    ``share`` gets losses (K + 1, N), without any seed first.
    """
    shown = [[(*seeds[0], False)], *([(layer, seed_idx, True)] for layer, seed_idx in seeds)]
    off, *on = share(lambda: _losses_of(model, shown, loss_fn, holdout, calibration))
    return [_effect(off, one) for one in on]


def leave_one_out(
    model: nn.Module,
    seeds: Sequence[tuple[Seeded, int]],
    *,
    loss_fn: LossFn,
    holdout: Iterable[Any],
    share: Share = _own,
) -> tuple[list[Effect], Effect]:
    """Judge several seeds, each and all together, against the model with all on as they are.

    So ``n`` seeds cost ``n + 2`` passes. Running statistics are left as they are; otherwise as
    `counterfactual`. ``share`` makes losses (n + 2, N): with all seeds, without each, without any.

    Raises:
        ConfigError: as `counterfactual`.
    """
    hidden = [(layer, seed_idx, False) for layer, seed_idx in seeds]
    shown = [[], *([one] for one in hidden), hidden]
    on, *offs, none = share(lambda: _losses_of(model, shown, loss_fn, holdout))
    return [_effect(off, on) for off in offs], _effect(none, on)


def _effect(off: Tensor, on: Tensor) -> Effect:
    difference = off - on
    n = difference.numel()
    return Effect(
        gain=float(difference.mean()),
        stderr=float(difference.std()) / sqrt(n) if n > 1 else float("inf"),
        loss_off=float(off.mean()),
        loss_on=float(on.mean()),
        examples=n,
    )


def _losses_of(
    model: nn.Module,
    shown: Sequence[Sequence[Shown]],
    loss_fn: LossFn,
    holdout: Iterable[Any],
    calibration: Sequence[Any] = (),
) -> Tensor:
    """Losses of this process's examples in each of P passes that differ in seeds, (P, N)."""
    norms = _estimated(model) if calibration else []
    losses: list[list[Tensor]] = [[] for _ in shown]
    with side_effect_free(model, training=False, reads=holdout), torch.no_grad():
        statistics = []
        for seeds in shown:
            with _showing(seeds):
                statistics.append(_statistics(norms, model, loss_fn, calibration))
        for batch in holdout:
            for number, seeds in enumerate(shown):
                # All passes but the last are undone, random state included: they begin alike.
                last = number == len(shown) - 1
                with nullcontext() if last else side_effect_free(model), _showing(seeds):
                    made = _losses_with(statistics[number], model, loss_fn, batch)
                losses[number].append(made)
    found = [_joined(made) for made in losses]
    for other in found:
        if other.shape != found[0].shape:
            raise ConfigError(
                f"loss_fn(model, batch) gave {found[0].numel()} losses in one pass and "
                f"{other.numel()} in another, with other seeds; the two are compared example by "
                "example, so it must give the same number"
            )
    return torch.stack(found)


@contextmanager
def _showing(seeds: Sequence[Shown]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, seed_idx, on in seeds:
            stack.enter_context(layer.showing(seed_idx, on=on))
        yield


def evaluate(
    model: nn.Module, loss_fn: LossFn, batches: Iterable[Any], *, share: Share = _own
) -> float:
    """Mean per-example value of ``loss_fn`` over the batches, in evaluation mode.

    ``share`` makes this process's values, shape (N,), those of all.
    """

    def values() -> Tensor:
        with side_effect_free(model, training=False, reads=batches), torch.no_grad():
            return _joined([_losses_with([], model, loss_fn, batch) for batch in batches])

    return float(share(values).mean())


def _estimated(model: nn.Module) -> list[_BatchNorm]:
    """Batch-norm layers whose statistics move."""
    # One that is in evaluation mode while the model trains is frozen, and keeps what it has.
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and (module.training or not model.training)
    ]


def _statistics(
    norms: Sequence[_BatchNorm], model: nn.Module, loss_fn: LossFn, batches: Sequence[Any]
) -> list[tuple[Tensor, Tensor]]:
    """Running statistics of the layers, and their plain average over the batches."""
    if not norms:
        return []
    momenta = [norm.momentum for norm in norms]
    try:
        with side_effect_free(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
            for batch in batches:
                loss_fn(model, batch)
            buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
            return [(buffer, buffer.clone()) for buffer in buffers]
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _losses_with(
    statistics: Sequence[tuple[Tensor, Tensor]], model: nn.Module, loss_fn: LossFn, batch: Any
) -> Tensor:
    for buffer, value in statistics:
        buffer.copy_(value)
    # float64: the differences that matter are a thousandth of the losses.
    return example_losses(loss_fn, model, batch).double()


def _joined(losses: Sequence[Tensor]) -> Tensor:
    if not losses:
        raise ConfigError(
            "holdout has no batches; give a list or a DataLoader, not a spent iterator"
        )
    return torch.cat(list(losses))
