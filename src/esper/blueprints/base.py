"""Blueprint: the contract of a recipe, with a width that is sized to a budget.

The output projection starts at zero, so a new kernel changes nothing; the layers before it are
random, so that the output projection learns from the first step on, everything else from the
second (zero times zero would never move).

Source:
    Hu et al. (2021), LoRA, section 4.1 (one factor zero, the other random); Evci et al. (2022),
    GradMax (new neurons: one side zero keeps the function, the other side decides the
    gradient); Chen, Goodfellow & Shlens (2016), Net2Net (growth must preserve the function).
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from copy import copy
from math import prod, sqrt
from typing import ClassVar, Self, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.contracts.errors import ConfigError, KernelError, unknown_name
from esper.contracts.seeds import LayerSpec

ANY_VECTOR = ("features", "sequence")
ANY_CONV = ("conv1d", "conv2d")
ANY_POOL = ("pool1d", "pool2d")


class Blueprint(ABC):
    """Recipe for the kernels of one family; its fields, all with defaults, are its settings.

    A subclass is a ``@final`` frozen dataclass that sets the class attributes and writes
    ``assemble``. Its kernels are made of ``torch`` and ``torch.nn`` operations alone, can be traced
    by ``torch.fx``, and hold neither buffers nor dropout (``docs/decisions/0008-blueprints.md``).

    Attributes:
        name: Name in the table.
        description: One line for lists.
        kinds: Values of ``LayerSpec.kind`` that it fits.
        born_zero: Parameters or submodules of the kernel that start at zero: its last projection.
        fixed_size: True if the layer's shape alone determines the number of parameters.
        whitened: True if the first batch sets the maps of its kernels, all that are not born zero,
            against what they read: see ``esper.execution.training.whitening``.
        placebo: True if its kernels cannot help: they are judged as others are, and never kept.
        share: Share of a budget that its kernels take, above 0 and at most 1; see `of_share`.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    born_zero: ClassVar[tuple[str, ...]] = ("up",)
    fixed_size: ClassVar[bool] = False
    whitened: ClassVar[bool] = False
    placebo: ClassVar[bool] = False
    share = 1.0

    @abstractmethod
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        """Put the modules of a kernel together; ``build`` sets their values.

        ``width`` is from 1 to ``widest(spec)``; the number of parameters must grow with it.
        """

    def misfit(self, spec: LayerSpec) -> str:
        """Reason why a layer of a fitting kind cannot have this kernel; empty if it can."""
        del spec
        return ""

    def widest(self, spec: LayerSpec) -> int | None:
        """Width beyond which a kernel costs more and computes no more; ``None`` for no limit."""
        del spec
        return 1 if self.fixed_size else None

    def initialise(self, kernel: nn.Module, generator: torch.Generator) -> None:
        """Set the initial values of a kernel, on any device, drawing from a generator of the CPU.

        Variance 1 / fan-in keeps the scale of the input in the hidden values; uniform, because a
        narrow kernel cannot average an outlier.

        Source:
            LeCun et al. (1998), Efficient BackProp, section 4.6.
        """
        for name, parameter in kernel.named_parameters():
            silent = any(name == zero or name.startswith(f"{zero}.") for zero in self.born_zero)
            if silent or parameter.dim() < 2:
                parameter.zero_()
                continue
            bound = sqrt(3 / prod(parameter.shape[1:]))
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))

    @final
    def of_share(self, share: float) -> Self:
        """The same recipe, whose kernels take a share of a budget, or have width 1 at least."""
        made = copy(self)
        object.__setattr__(made, "share", share)
        return made

    @final
    def objection(self, spec: LayerSpec) -> str:
        """Reason why the blueprint does not fit the layer; empty if it does."""
        if not set(spec.kinds) & set(self.kinds):
            doubt = f": {spec.doubt}" if spec.doubt else ""
            return (
                f"blueprint {self.name!r} is for {' and '.join(self.kinds)} layers, "
                f"not for {describe(spec)}{doubt}"
            )
        spec = self._seen(spec)
        if min(spec.in_size, spec.out_size) < 1:
            return f"blueprint {self.name!r} needs sizes >= 1, but got {describe(spec)}"
        reason = self.misfit(spec)
        return f"blueprint {self.name!r} does not fit {describe(spec)}: {reason}" if reason else ""

    @final
    def mismatch(self, spec: LayerSpec) -> str:
        """As ``objection``, in a few words, without the names of blueprint and layer."""
        if not set(spec.kinds) & set(self.kinds):
            return f"for {' and '.join(self.kinds)} layers"
        seen = self._seen(spec)
        return "sizes below 1" if min(seen.in_size, seen.out_size) < 1 else self.misfit(seen)

    @final
    def count(self, spec: LayerSpec, width: int) -> int:
        """Trainable parameters of the kernel of this width, and what a merge of it adds to them."""
        own = sum(p.numel() for p in self._unborn(self._seen(spec), width).parameters())
        return own + width * (spec.crossed + width * spec.corner)

    @final
    def width_within(self, spec: LayerSpec, budget: int) -> int:
        """Largest width whose kernel has at most ``budget`` parameters; 0 if there is none."""
        # Each unit of width costs a parameter or more, so the budget itself bounds the search.
        limit = max(min(budget, self.widest(spec) or budget), 0)
        return bisect_right(range(1, limit + 1), budget, key=lambda width: self.count(spec, width))

    @final
    def size_within(self, spec: LayerSpec, budget: int) -> int:
        """Trainable parameters of the kernel that `build` makes for a layer that it fits.

        Raises:
            KernelError: if the budget is too small.
        """
        return self.count(spec, self._affordable(spec, budget))

    @final
    def build(
        self,
        spec: LayerSpec,
        *,
        budget: int,
        seed: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> nn.Module:
        """Build the widest kernel that the budget allows; as ``esper.blueprints.build``.

        The initial values are drawn on the CPU in float32 and then converted, so they are the same
        on every device and, up to rounding, in every dtype.

        Raises:
            KernelError: if the blueprint does not fit the layer, or the budget is too small.
        """
        objection = self.objection(spec)
        if objection:
            raise KernelError(objection)
        width, spec = self._affordable(spec, budget), self._seen(spec)
        with torch.inference_mode(False), torch.no_grad():
            kernel = self._unborn(spec, width).to(dtype or torch.get_default_dtype())
            kernel.to_empty(device=device or torch.get_default_device())
            generator = torch.Generator(device="cpu").manual_seed(seed % 2**63)
            self.initialise(kernel, generator)
        in_place = spec.order == tuple(range(len(spec.order)))
        if spec.flat or spec.kind in ANY_POOL:
            flat = spec.kind not in ANY_POOL
            return kernel if in_place and not flat else Summary(kernel, spec.order, flat=flat)
        return kernel if in_place else Rearranged(kernel, spec.order)

    def _seen(self, spec: LayerSpec) -> LayerSpec:
        """Specification as the first kind of the layer that the blueprint fits."""
        return spec.seen_as(next((kind for kind in spec.kinds if kind in self.kinds), spec.kind))

    def _affordable(self, spec: LayerSpec, budget: int) -> int:
        width = self.width_within(spec, int(self.share * budget))
        width = width or min(1, self.width_within(spec, budget))
        if width == 0:
            raise KernelError(
                f"a budget of {budget} parameters is too small for blueprint {self.name!r} on "
                f"{describe(spec)}: its smallest kernel has {self.count(spec, 1)}"
            )
        return width

    def _unborn(self, spec: LayerSpec, width: int) -> nn.Module:
        # On "meta" nothing is allocated and no random number is drawn.
        with torch.device("meta"):
            return self.assemble(spec, width)


@final
class Rearranged(nn.Module):
    """Kernel that reads and writes its axes in another order than the layer.

    Args:
        kernel: Maps a tensor to one of as many axes.
        order: Axes of the layer's tensors in the order of the kernel's.

    Example:
        >>> Rearranged(nn.Conv1d(3, 4, 1), (1, 2, 0))(torch.zeros(5, 2, 3)).shape  # (T, B, C)
        torch.Size([5, 2, 4])
    """

    def __init__(self, kernel: nn.Module, order: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel = kernel
        self.order = order
        self.back = tuple(sorted(range(len(order)), key=order.__getitem__))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.kernel(x.permute(self.order)).permute(self.back))


@final
class Summary(nn.Module):
    """Kernel that reads its axes in another order, or all in one, and writes features alone.

    Args:
        kernel: Maps a tensor with the examples first to (B, G).
        order: Axes of the layer's input in the order of the kernel's.
        flat: True if the kernel reads the axes behind the examples as one.

    Example:
        >>> Summary(nn.Linear(6, 4), (0, 1, 2), flat=True)(torch.zeros(5, 2, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(self, kernel: nn.Module, order: tuple[int, ...], *, flat: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.order = order
        self.flat = flat

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(self.order)
        return cast("Tensor", self.kernel(x.flatten(1) if self.flat else x))


def describe(spec: LayerSpec) -> str:
    """Kind and shape of a layer in words.

    Example:
        >>> describe(LayerSpec(kind="conv2d", in_size=3, out_size=5,
        ...                    in_extent=(8, 8), out_extent=(4, 4), layer_type="Conv2d"))
        'a conv2d layer (Conv2d, 3x8x8 -> 5x4x4)'
    """
    shapes = [
        "x".join(map(str, (size, *extent)))
        for size, extent in ((spec.in_size, spec.in_extent), (spec.out_size, spec.out_extent))
    ]
    host = f"{spec.layer_type}, " if spec.layer_type else ""
    layout = f" in {spec.layout}" if spec.layout else ""
    return f"a {spec.kind} layer ({host}{shapes[0]} -> {shapes[1]}{layout})"


def shape_changes(spec: LayerSpec) -> str:
    """Reason why a kernel that keeps its input's shape does not fit; empty if it does."""
    if spec.same_shape and all(stride == 1 for stride in spec.stride):
        return ""
    return "its output has the shape of its input, and this layer changes the shape"


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def activation(name: str) -> nn.Module:
    """Nonlinearity by name; ``"gelu"`` is the default, since narrow ReLU layers may be born dead.

    Raises:
        ConfigError: if there is no such name.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(unknown_name("activation", name, _ACTIVATIONS))
    return _ACTIVATIONS[name]()
