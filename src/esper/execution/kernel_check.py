"""Does a kernel fit its layer? Asked before it is loaded, as far as the shapes are known."""

import torch
from torch import Tensor, nn

from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec
from esper.execution.kernel import FAULTS, Kernel
from esper.execution.side_effect_free import side_effect_free

Shape = tuple[int, ...]


def check_kernel(
    kernel: Kernel, layer: str, host: nn.Module, spec: LayerSpec | None, *, like: Tensor
) -> None:
    """Run the kernel once on zeros of the layer's shape; it is left as it was.

    Args:
        kernel: The kernel.
        layer: Name of the layer, for the message.
        host: The layer's host.
        spec: What is known of the layer; without it a linear host or the recipe says what it can,
            and nothing is checked if neither does.
        like: Tensor of the device and type that the kernel works on.

    Raises:
        KernelError: if the kernel fails, or gives anything but the shape that the layer writes.
    """
    shapes = _known(kernel, host, spec)
    if shapes is None:
        return
    x_shape, y_shape = shapes
    try:
        with torch.no_grad(), side_effect_free(kernel.module):
            y = kernel.module(like.new_zeros(x_shape))
    except FAULTS as error:
        raise KernelError(
            f"kernel {kernel.kernel_id!r} fails on the input of layer {layer!r}, shape "
            f"{x_shape}: {error}"
        ) from error
    found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if found != y_shape:
        raise KernelError(
            f"kernel {kernel.kernel_id!r} maps {x_shape} to {found}, but layer {layer!r} "
            f"maps it to {y_shape}; the two are added, so they must be equal"
        )


def _known(kernel: Kernel, host: nn.Module, spec: LayerSpec | None) -> tuple[Shape, Shape] | None:
    if spec is None and kernel.recipe is not None:
        spec = kernel.recipe.spec
    axes = (2, 3) if spec is not None and spec.kind == "sequence" else (2,)
    if isinstance(host, nn.Linear):
        return (*axes, host.in_features), (*axes, host.out_features)
    if spec is None:
        return None
    return (*axes, spec.in_size, *spec.in_extent), (*axes, spec.out_size, *spec.out_extent)
