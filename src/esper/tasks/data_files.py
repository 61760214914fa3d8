"""Data files of the tasks; their sources and licences are in ``data/NOTICE.md``."""

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from esper.tasks.base import Splits

# N examples, T characters, ... shape of one example


def load_standardised(name: str, *, each_feature: bool) -> Splits:
    """Read ``data/<name>.npz``, standardised with mean and deviation of the training part.

    ``each_feature`` standardises every feature by itself; otherwise all pixels or samples alike, so
    that a constant border stays constant.
    """
    inputs, targets_N, split_N = _arrays(name, np.float32)
    inputs = _standardised(inputs, inputs[split_N == 0], each_feature=each_feature)
    train, validation, test = (
        (inputs[split_N == part], targets_N[split_N == part]) for part in range(3)
    )
    return Splits(train, validation, test)


def load_text(name: str) -> Splits:
    """Read passages of ``data/<name>.npz``: characters (N, T) and, shifted by one, the next ones.

    Characters are symbol numbers as int64; the file has the last of the next ones as its targets.
    """
    characters_NT, last_N, split_N = _arrays(name, np.int64)
    next_NT = torch.cat([characters_NT[:, 1:], last_N[:, None]], dim=1)
    return Splits(
        *((characters_NT[split_N == part], next_NT[split_N == part]) for part in range(3))
    )


def _arrays(name: str, dtype: type[np.generic]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs as ``dtype``, targets and parts of ``data/<name>.npz``."""
    with (files("esper.tasks") / "data" / f"{name}.npz").open("rb") as file, np.load(file) as saved:
        inputs = torch.from_numpy(saved["inputs"].astype(dtype))
        return (
            inputs,
            torch.from_numpy(saved["targets"].astype(np.int64)),
            torch.from_numpy(saved["split"]),
        )


def _standardised(inputs: Tensor, train: Tensor, *, each_feature: bool) -> Tensor:
    # In float64: sums over a million pixels, and the same result on every machine after rounding.
    dims = [0] if each_feature else list(range(train.ndim))
    deviation, mean = torch.std_mean(train.double(), dim=dims, keepdim=True)
    return ((inputs - mean) / deviation).float()
