"""What is given to `LayerArrays` is what it must be, or the error names the first that is not."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper.contracts.errors import ConfigError, MeasurementError, SelectionError
from esper.contracts.performance import LARGEST
from esper.services.tamiyo.columns import Floats, Whole


def require_whole(what: str, value: object, least: int | None = None) -> int:
    """The value as a whole number.

    Raises:
        ConfigError: if it is none, or less than ``least``.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):  # type: ignore[operator]  # whole
        wanted = "a whole number" if least is None else f"a whole number >= {least}"
        raise ConfigError(f"{what} is {value!r}; it must be {wanted}")
    return int(value)  # type: ignore[call-overload,no-any-return]  # whole


def checked_viable(viable: ArrayLike, layers: int, seeds: int) -> NDArray[np.bool_]:
    """Which seeds of which layers may be chosen.

    Raises:
        SelectionError: if it is no array of booleans of that shape.
    """
    found = _array("viable_LK", viable)
    if found.shape != (layers, seeds) or found.dtype != np.bool_:
        raise SelectionError(
            f"viable_LK is of shape {found.shape} and type {found.dtype}; it must be {layers} "
            f"layers by {seeds} seeds of bool"
        )
    return found


def checked_places(
    layers_N: ArrayLike, seeds_N: ArrayLike, layers: int, seeds: int
) -> tuple[Whole, Whole]:
    """Layers and seeds of outcomes.

    Raises:
        SelectionError: if they are not whole numbers in one dimension, as many of one as of the
            other, or there is no such layer or seed.
    """
    found = _indices("layers_N", "layer", layers_N, layers)
    own = _indices("seeds_N", "seed", seeds_N, seeds)
    if len(found) != len(own):
        raise SelectionError(
            f"there are {len(found)} layers but {len(own)} seeds; every outcome has one of each"
        )
    return found, own


def checked_rewards(rewards_N: ArrayLike, outcomes: int) -> Floats:
    """Rewards of so many outcomes.

    Raises:
        SelectionError: if there are not as many.
        MeasurementError: if one is no number, NaN, infinite or too large.
    """
    found = _array("rewards_N", rewards_N)
    if found.dtype.kind not in "fiu" and found.size:
        raise MeasurementError(f"rewards_N are of type {found.dtype}; rewards must be numbers")
    if found.shape != (outcomes,):
        raise SelectionError(
            f"rewards_N is of shape {found.shape}; it must be ({outcomes},), one for each layer "
            "and seed"
        )
    rewards = found.astype(np.float64)
    # Written so that NaN is wrong as well.
    wrong = ~(np.abs(rewards) < LARGEST)
    if wrong.any():
        at = int(wrong.argmax())
        raise MeasurementError(
            f"rewards_N[{at}] is {rewards[at]}; a reward must be finite (below {LARGEST:g}). Leave "
            "out what could not be measured, and withdraw_many() its choice"
        )
    return rewards


def _indices(name: str, what: str, given: ArrayLike, count: int) -> Whole:
    found = _array(name, given)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
        raise SelectionError(
            f"{name} is of shape {found.shape} and type {found.dtype}; it must be whole numbers in "
            "one dimension"
        )
    wrong = (found < 0) | (found >= count)
    if wrong.any():
        at = int(wrong.argmax())
        raise SelectionError(
            f"{name}[{at}] is {found[at]}; there is no such {what}, they are 0 to {count - 1}"
        )
    return found.astype(np.intp)


def _array(name: str, given: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError as error:
        raise SelectionError(f"{name} is no array ({error}); all rows must be of one length") from (
            error
        )
