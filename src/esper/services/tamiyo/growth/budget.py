"""Budget of a run: as set, or a share of the host; and the layers that it is too small for."""

import logging
from collections.abc import Mapping

from torch import nn

from esper.contracts.config import Config, Growth
from esper.execution.seeded import Seeded
from esper.services.tamiyo.blueprint_integration import smallest_kernels
from esper.widths.host import host_parameters

logger = logging.getLogger(__name__)

_FROZEN = 0.05
"""Trainable share of the parameters below which a host counts as frozen."""


def with_budget(
    config: Config,
    model: nn.Module,
    layers: Mapping[str, Seeded],
    left_out: Mapping[str, str],
) -> Config:
    """Settings whose budget is a number: as set, or a share of the host.

    Layers of which not even the smallest kernel is within it are named, with a warning.

    Args:
        config: The settings.
        model: The model.
        layers: Its wrapped layers by name; those that were not called yet are passed over.
        left_out: Layers that cannot grow anyway, by name.
    """
    budget = config.growth.budget_for(count_host(model, layers))
    growth = config.growth.model_copy(update={"budget": budget})
    _warn_if_too_small(growth, {n: it for n, it in layers.items() if it.spec and n not in left_out})
    return config.model_copy(update={"growth": growth})


def count_host(model: nn.Module, layers: Mapping[str, Seeded]) -> int:
    """Trainable parameters of the model without its kernels; all if almost none is trainable."""
    host = host_parameters(model)
    merged = sum(layer.merged_parameters for layer in layers.values())
    total = sum(parameter.numel() for parameter in host) - merged
    trainable = sum(p.numel() for p in host if p.requires_grad) - merged
    return trainable if trainable >= _FROZEN * total else total


def _warn_if_too_small(growth: Growth, layers: Mapping[str, Seeded]) -> None:
    limits = {"growth.budget": growth.budget_for(0), "growth.kernel_budget": growth.kernel_budget}
    setting, limit = min(
        ((name, value) for name, value in limits.items() if value is not None), key=lambda it: it[1]
    )
    sizes = {n: found for n, layer in layers.items() if (found := smallest_kernels(layer))}
    smallest = {name: next(iter(found.items())) for name, found in sizes.items()}
    too_large = {name: one for name, one in smallest.items() if one[1] > limit}
    if too_large and len(too_large) == len(smallest):
        too_large = dict([min(too_large.items(), key=lambda item: item[1][1])])
        logger.warning("%s is %s parameters: too few for any layer to grow", setting, f"{limit:,}")
    for name, (blueprint, size) in too_large.items():
        logger.warning(
            "layer %s cannot grow: its smallest kernel, %s, has %s parameters, and %s is %s; raise "
            "it to %s at least",
            *(name, blueprint, f"{size:,}", setting, f"{limit:,}", f"{size:,}"),
        )
