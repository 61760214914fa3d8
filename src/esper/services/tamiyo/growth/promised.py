"""Promised: what the gradient says that kernels of frozen layers may earn, before any was tried.

A kernel is zero at birth, so all that it can do first is follow its gradient. Where the host is
frozen nothing else follows it; where the host learns too, the gradient says where the host will go
(docs/decisions/0012), and nothing is promised.
"""

from collections.abc import Callable, Mapping
from math import inf
from statistics import fmean

from esper.contracts.errors import KernelError, MeasurementError
from esper.execution.seeded import Seeded
from esper.services.tamiyo.policies.base import Promises

Promised = Mapping[str, Mapping[str, float]]
"""By layer and blueprint, what the smallest kernel promises, relative to the mean of all."""


def relative(found: Callable[[], Promises], layers: Mapping[str, Seeded]) -> Promised:
    """Promises of the smallest kernels of frozen layers; empty if the pass says nothing.

    Args:
        found: Makes the pass.
        layers: The wrapped layers by name.
    """
    try:
        promises = found()
    except (KernelError, MeasurementError):  # no gradients, or NaN: no reason not to grow
        return {}
    first = {
        name: {blueprint: values[0] for blueprint, values in kinds.items() if values}
        for name, kinds in promises.items()
        if layers[name].frozen
    }
    every = [value for kinds in first.values() for value in kinds.values()]
    mean = fmean(every) if every else 0.0
    if not 0 < mean < inf:
        return {}
    return {name: {it: kinds[it] / mean for it in kinds} for name, kinds in first.items()}
