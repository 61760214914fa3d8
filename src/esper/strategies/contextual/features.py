"""Features of a choice for contextual strategies: a fixed list of numbers, about as large as 1.

Every number is a fixed function of the context, so that features of different layers, runs and
versions agree. Unmeasured is neither zero nor healthy: a missing measurement is 0, the middle of
its scale, and sets a flag of its own.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from math import copysign, inf, isfinite, log1p

from esper.contracts.health import HealthSignal
from esper.contracts.selection import Decision, SelectionContext

Features = tuple[float, ...]

_HEALTH: tuple[tuple[str, float, float, float], ...] = (
    ("gradient_rms", 0.1, 1.8, 0.8),
    ("input_rms", 1.0, 1.7, 0.6),
    ("activation_sd", 1.0, 1.0, 0.4),
    ("dead_fraction", 0.1, 0.4, 0.5),
    ("holdout_loss", 1.0, 0.9, 0.3),
    ("loss_trend", 0.01, -1.5, 1.0),
)
"""Measurement ``v``, and ``unit``, ``centre``, ``spread`` of its scale:
``(sign(v) * log1p(|v| / unit) - centre) / spread``; centre and spread are those of small networks
on the shipped tasks."""

_TYPE = 6
"""Signs that encode a layer type."""

_FAR = 3.0
"""Limit of a feature's distance from the middle of its scale, in spreads."""

_WEIGHT = 0.5
"""Factor on every feature but the constant, so that together they matter about as much a priori."""

NAMES: tuple[str, ...] = (
    "constant",
    "epoch",
    "urgency",
    "urgency missing",
    *[name for name, *_ in _HEALTH],
    *[f"{name} missing" for name, *_ in _HEALTH],
    *[f"layer type, sign {index}" for index in range(_TYPE)],
    "parameters",
    "parameters missing",
)
"""Meaning of each feature."""

WIDTH = len(NAMES)
"""Number of features."""


def of_seeds(context: SelectionContext, seeds: Sequence[int]) -> dict[int, Features]:
    """Features of choosing each of ``seeds`` in ``context``, in the order of `NAMES`.

    Example:
        The epoch alone is measured, 19: ``0.5 * (ln 20 - 3) / 1.5`` is about zero.

        >>> seen = of_seeds(SelectionContext(current_epoch=19), [0])[0]
        >>> {name: round(value, 3) for name, value in zip(NAMES[:4], seen)}
        {'constant': 1.0, 'epoch': -0.001, 'urgency': 0.0, 'urgency missing': 0.5}
    """
    layer = _of_layer(context.current_epoch, context.urgency, context.health, context.layer_type)
    if not context.parameters:
        return dict.fromkeys(seeds, (*layer, 0.0, _WEIGHT))
    return {seed: (*layer, *_of_kernel(context.parameters.get(seed))) for seed in seeds}


def of_decision(decision: Decision | None) -> Features:
    """Features of a logged choice: those that decided it, else those of its epoch and layer type.

    A seed's first try, and strategies of other kinds, log none.
    """
    if decision is None:
        return (*_of_layer(0, None, None, ""), *_of_kernel(None))
    seen = decision.reason.features
    if len(seen) == WIDTH and all(map(isfinite, seen)):
        return seen
    layer = _of_layer(decision.epoch, None, None, decision.layer_type)
    return (*layer, *_of_kernel(None))


@lru_cache(maxsize=256)
def _of_layer(
    epoch: int, urgency: float | None, health: HealthSignal | None, layer_type: str
) -> Features:
    values, missing = _of_health(health)
    known = urgency is not None and isfinite(urgency)
    return (
        1.0,
        _scaled(log1p(epoch), 3.0, 1.5),
        _scaled(urgency, 0.5, 0.3) if known and urgency is not None else 0.0,
        0.0 if known else _WEIGHT,
        *values,
        *missing,
        *(code(layer_type, _TYPE, _WEIGHT) if layer_type else (0.0,) * _TYPE),
    )


@lru_cache(maxsize=256)
def _of_health(health: HealthSignal | None) -> tuple[Features, Features]:
    values, missing = [], []
    for name, unit, centre, spread in _HEALTH:
        value = None if health is None else getattr(health, name)
        if value is None or not isfinite(value):
            values.append(0.0)
            missing.append(_WEIGHT)
        else:
            values.append(_scaled(copysign(log1p(abs(value) / unit), value), centre, spread))
            missing.append(0.0)
    return tuple(values), tuple(missing)


@lru_cache(maxsize=1024)
def _of_kernel(parameters: float | None) -> Features:
    if parameters is None or not 0 <= parameters < inf:
        return 0.0, _WEIGHT
    return _scaled(log1p(parameters), 6.9, 2.5), 0.0


def _scaled(value: float, centre: float, spread: float) -> float:
    return _WEIGHT * min(max((value - centre) / spread, -_FAR), _FAR)


def identity(layer_name: str, seed_idx: int, blueprint: str) -> str:
    """Name under which a seed is learnt: its blueprint, in any layer; without one, only itself.

    Example:
        >>> identity("fc1", 2, "glu"), identity("fc1", 2, "")
        ('glu', 'fc1/2')
    """
    return blueprint or f"{layer_name}/{seed_idx}"


@lru_cache(maxsize=4096)
def code(name: str, size: int, length: float = 1.0) -> Features:
    """Vector of signs that encodes a name, nearly orthogonal to that of any other name.

    Args:
        name: Any string.
        size: Numbers in the vector; two names share one with probability ``2 ** -size``.
        length: Euclidean length of the vector.

    Example:
        >>> code("glu", 4) == code("glu", 4), code("glu", 32) == code("conv", 32), len(code("", 70))
        (True, False, 70)
    """
    words = -(-size // 512)
    digest = b"".join([blake2b(f"{block}/{name}".encode()).digest() for block in range(words)])
    bits = int.from_bytes(digest, "big")
    value = length / size**0.5
    return tuple([value if bits >> index & 1 else -value for index in range(size)])
