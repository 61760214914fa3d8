"""A pass that leaves no trace: modes, buffers and every random state are put back afterwards."""

import random  # noqa: TID251 (only to put the user's state back)
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_STATISTICS = (_NormBase,)


@contextmanager
def quiet(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Run anything on the model and leave the model and all random states as they were.

    Parameters and their ``.grad`` are the caller's to leave alone. Inside, a compiled model runs
    eagerly, so that a pass on the side never makes the main pass recompile.

    Args:
        model: Whose modes and buffers are put back.
        training: Mode in which to run; ``None`` leaves each module's own.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=_cuda_devices(model)), _eager():
            if training is not None and not all(mode is training for mode in modes):
                model.train(training)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, mode in zip(modules, modes, strict=True):
            if module.training is not mode:
                module.training = mode
        for module, name, buffer, value in buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def freeze_statistics(model: nn.Module) -> None:
    """Let batch-norm layers use their running statistics, whatever the mode of the model."""
    for module in model.modules():
        if isinstance(module, _STATISTICS):
            module.training = False


def keeps_statistics(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics of its input."""
    return any(
        isinstance(module, _STATISTICS) and module.track_running_stats for module in model.modules()
    )


def _cuda_devices(model: nn.Module) -> list[int]:
    if not torch.cuda.is_initialized():
        return []
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _eager() -> AbstractContextManager[object]:
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    return nullcontext()
