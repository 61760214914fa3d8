"""Restore modes, buffers and random states after a pass."""

import random  # noqa: TID251 (only to put the user's state back)
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from esper.execution.concealed import every_module
from esper.execution.fast_paths import force_eager
from esper.execution.undoing.changes import equal_bits, restore
from esper.execution.undoing.deep import undone_at_the_end
from esper.execution.undoing.module_state import ModuleState, Sources


@contextmanager
def side_effect_free(
    model: nn.Module, *, training: bool | None = None, reads: object = None
) -> Iterator[None]:
    """Restore the model's modes, buffers, attributes and all random states on leaving.

    Parameters and deeper state are restored where ``trial.try_passes`` saw them changing; ``.grad``
    is not. Inside, a compiled model runs eagerly (the main pass is not recompiled) and PyTorch's
    fused paths are off (every wrapped layer is called).

    Args:
        model: The model.
        training: Mode inside; ``None`` keeps that of each module.
        reads: Source of batches; generators and counters of its samplers and data sets are restored
            too, which it may share with the source that is trained on.
    """
    modules = list(every_module(model))
    # A frozen ScriptModule has no mode.
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    buffers = [dict(module._buffers) for module in modules]
    values = [{name: b.clone() for name, b in d.items() if b is not None} for d in buffers]
    state = ModuleState(modules)
    sources = Sources(reads)
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            torch.random.fork_rng(devices=_cuda_devices(model)),
            force_eager(),
            undone_at_the_end(),
        ):
            if training is not None and not all(mode is training for _, mode in modes):
                model.train(training)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        sources.put_back()
        for module, mode in modes:
            if module.training is not mode:
                module.training = mode
        for module, held, value in zip(modules, buffers, values, strict=True):
            _put_back(module, held, value)
        state.put_back()


def _put_back(
    module: nn.Module, held: dict[str, torch.Tensor | None], values: dict[str, torch.Tensor]
) -> None:
    now = dict(module._buffers)  # a ScriptModule's is no dictionary
    for name in now.keys() - held.keys():
        del module._buffers[name]
    for name, buffer in held.items():
        if now.get(name, module) is not buffer:
            module._buffers[name] = buffer
        if buffer is not None and (_is_far(buffer) or not equal_bits(buffer, values[name])):
            restore(buffer, values[name])


def _is_far(tensor: torch.Tensor) -> bool:
    """True on a device for whose answer the processor would wait, where a write costs less."""
    far = tensor.device.type not in {"cpu", "meta"} and tensor.layout is torch.strided
    return far and tensor.is_contiguous() and not tensor.is_inference()


def training_like_mode(model: nn.Module) -> bool | None:
    """Mode for a pass that resembles training; in a training model every module keeps its own.

    So a frozen trunk that is in evaluation mode stays in it.
    """
    return None if model.training else True


def freeze_statistics(model: nn.Module) -> None:
    """Let batch-norm layers use their running statistics in any mode of the model."""
    for module in every_module(model):
        if isinstance(module, _NormBase):
            module.training = False


def keeps_statistics(model: nn.Module) -> bool:
    """True if any batch-norm layer keeps running statistics of its input."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


def _cuda_devices(model: nn.Module) -> list[int]:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
