"""Fingerprints of parameters and holdouts, by which processes tell whether theirs are equal."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from esper.execution.concealed import Concealing
from esper.execution.passes.batches import tensors_in
from esper.execution.side_effect_free import side_effect_free

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes."""


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a model by name, those of isolated kernels included, each once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        found = list(module.named_parameters(prefix=path, recurse=False))
        if isinstance(module, Concealing) and module.concealed is not None:
            found += module.concealed.named_parameters(prefix=f"{path}.kernel")
        for name, parameter in found:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter


def fingerprint(model: nn.Module) -> tuple[list[str], Tensor]:
    """Names of the parameters, and the sum of the bits of each, as integers, shape (N,)."""
    named = list(named_parameters(model))
    with torch.no_grad():
        sums = [_sum_of_bits(parameter) for _, parameter in named]
    return [name for name, _ in named], torch.stack(sums).cpu()


def holdout_fingerprint(holdout: Iterable[Any]) -> int:
    """Sum over the examples of a holdout, whatever their order and batches; 63 bits."""
    total = 0
    with side_effect_free(nn.Identity(), reads=holdout):
        for batch in holdout:
            for place, tensor in enumerate(tensors_in(batch), start=1):
                total += place * int(_sum_of_bits(tensor)) + tensor.shape[:1].numel()
    return total % 2**62


def _sum_of_bits(tensor: Tensor) -> Tensor:
    whole = tensor.detach().contiguous()
    if whole.is_complex():
        whole = torch.view_as_real(whole)
    bits = whole.reshape(-1).view(_WHOLE[whole.element_size()]) if whole.numel() else whole
    return bits.sum(dtype=torch.int64)
