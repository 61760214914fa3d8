"""Blueprints: recipes for the small modules that a seed can grow into.

A *kernel* is added to its layer, ``y = host(x) + alpha * kernel(x)``, so it maps the shape that the
layer reads to the shape that it writes. torch is imported with the first blueprint that is loaded.

A name may end in a share of the kernel budget, as ``"glu@1/4"`` or ``"glu@0.25"``: seeds of one
layer can then differ in size, and which size pays is learnt like everything else.
"""

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, KernelError
from esper.contracts.seeds import LayerSpec
from esper.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from esper.blueprints.base import Blueprint


@final
class Blueprints(Registry["Blueprint"]):
    """Blueprints by name; a name with a share is that of a blueprint whose kernels are smaller."""

    @override
    def load(self, name: str) -> "type[Blueprint]":
        """Class of this name, of whatever share; raises as `Registry.load`, or for a share."""
        base, _ = parted(name)
        return super().load(base)

    @override
    def create(self, name: str, **settings: Any) -> "Blueprint":
        """Blueprint of this name and share; raises as `load`, and for a wrong setting."""
        base, share = parted(name)
        return super().create(base, **settings).of_share(share)


def parted(name: str) -> tuple[str, float]:
    """Name of a blueprint, and the share of the kernel budget that its kernels take.

    Raises:
        ConfigError: if the share is not above 0 and at most 1.

    Example:
        >>> parted("glu@1/4"), parted("glu")
        (('glu', 0.25), ('glu', 1.0))
    """
    if not isinstance(name, str) or "@" not in name:
        return name, 1.0  # what is no name is refused where it is looked up
    base, _, text = name.partition("@")
    if not re.fullmatch(r"\d{1,4}(/\d{1,5}|\.\d{1,4})?", text) or set(text.partition("/")[2]) == {
        "0"
    }:
        raise ConfigError(f"blueprint {name!r}: give a share of the budget, as {base}@1/4")
    share = float(Fraction(text))
    if not 0 < share <= 1:
        raise ConfigError(
            f"blueprint {name!r}: a share of the kernel budget is above 0 and at most 1; for "
            "larger kernels raise growth.kernel_budget"
        )
    return base, share


def canonical(name: str) -> str:
    """One spelling of a name with a share; raises as `parted`.

    Example:
        >>> canonical("glu@0.25"), canonical("glu@2/8"), canonical("glu@1")
        ('glu@1/4', 'glu@1/4', 'glu')
    """
    base, share = parted(name)
    return base if share == 1.0 else f"{base}@{Fraction(share).limit_denominator(10**5)}"


BLUEPRINTS = Blueprints(
    "blueprint",
    {
        "lowrank": "esper.blueprints.lowrank:LowRank",
        "lora": "esper.blueprints.lowrank:LoRA",
        "bottleneck": "esper.blueprints.bottleneck:Bottleneck",
        "glu": "esper.blueprints.glu:GLU",
        "gate": "esper.blueprints.gate:Gate",
        "bias": "esper.blueprints.scale:Bias",
        "scale": "esper.blueprints.scale:Scale",
        "attention": "esper.blueprints.attention:Attention",
        "causal_mixer": "esper.blueprints.causal_mixer:CausalMixer",
        "conv_bottleneck": "esper.blueprints.conv_bottleneck:ConvBottleneck",
        "conv_block": "esper.blueprints.conv_block:ConvBlock",
        "depthwise": "esper.blueprints.depthwise:Depthwise",
        "se": "esper.blueprints.se:SqueezeExcite",
        "conv_pool": "esper.blueprints.conv_pool:ConvPool",
        "units": "esper.blueprints.units:Units",
        "units_select": "esper.blueprints.units:UnitsSelect",
        "units_split": "esper.blueprints.units:UnitsSplit",
        "heads": "esper.blueprints.units:Heads",
        "placebo": "esper.blueprints.placebo:Placebo",
    },
    group="esper.blueprints",
)


def fitting(spec: LayerSpec) -> list[str]:
    """Names of the blueprints that fit the layer, in the order of the table; may be empty.

    Placebos are left out: they are no help to anyone.
    """
    recipes = {name: BLUEPRINTS.create(name) for name in BLUEPRINTS.names()}
    return [name for name, it in recipes.items() if not (it.placebo or it.objection(spec))]


def for_widths(name: str) -> bool:
    """True if a blueprint builds units for the width between layers."""
    return not {"width", "heads"}.isdisjoint(BLUEPRINTS.create(name).kinds)


def is_placebo(name: str) -> bool:
    """True if the kernels of a blueprint cannot help; a custom kernel, without a name, may."""
    return bool(name) and BLUEPRINTS.load(name).placebo


def smallest(name: str, spec: LayerSpec) -> int:
    """Trainable parameters of the narrowest kernel that the blueprint builds for the layer.

    Raises:
        ConfigError: if there is no such blueprint.
        KernelError: if it does not fit the layer.
    """
    return _fit(name, spec).count(spec, 1)


def size_within(name: str, spec: LayerSpec, *, budget: int) -> int:
    """Trainable parameters of the kernel that `build` would make.

    Raises:
        ConfigError: if there is no such blueprint.
        KernelError: if the blueprint does not fit the layer, or the budget is too small.
    """
    return _fit(name, spec).size_within(spec, budget)


def build(
    name: str,
    spec: LayerSpec,
    *,
    budget: int,
    seed: int,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str | None" = None,
) -> "nn.Module":
    """Build the widest kernel for the layer that has at most ``budget`` trainable parameters.

    The blueprint has its default settings. ``seed`` is the only source of the initial weights; no
    other random state is read or changed.

    Returns:
        Module in training mode whose output is exactly zero.

    Raises:
        ConfigError: if there is no such blueprint.
        KernelError: if the blueprint does not fit the layer, or the budget is too small.
    """
    blueprint = _fit(name, spec)
    return blueprint.build(spec, budget=budget, seed=seed, dtype=dtype, device=device)


def _fit(name: str, spec: LayerSpec) -> "Blueprint":
    blueprint = BLUEPRINTS.create(name)
    objection = blueprint.objection(spec)
    if objection:
        names = ", ".join(fitting(spec)) or "none"
        raise KernelError(f"{objection}. Blueprints that fit this layer: {names}")
    return blueprint
