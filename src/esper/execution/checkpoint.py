"""Checkpoints: nested dictionaries of tensors and plain values, in one safetensors file, no pickle.

Tensors are stored as such, everything else as JSON in the file's header, with numbers for tensors.
A file is written beside the old one and then takes its place, so a process that dies while writing
leaves the previous checkpoint whole.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esper.contracts.errors import StoreError

SCHEMA = 1


def save(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree of dictionaries, lists, tensors, numbers, strings, booleans and ``None``.

    Dictionary keys may be integers, as in an optimizer's state; they come back as integers.

    Raises:
        TypeError: if the tree holds anything else.
        StoreError: if the file cannot be written; one that was there before is still there.
    """
    tensors: list[Tensor] = []
    header = json.dumps(_pack(tree, tensors))
    stored = {str(i): t.detach().cpu().contiguous().clone() for i, t in enumerate(tensors)}
    beside = path.with_suffix(path.suffix + ".new")
    try:
        save_file(stored, beside, metadata={"schema": str(SCHEMA), "tree": header})
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise StoreError(f"checkpoint {path} cannot be written: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` wrote; tensors are on the CPU.

    Raises:
        StoreError: if the file is missing, damaged, or written by a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StoreError(f"checkpoint {path} cannot be read: {error}") from error
    try:
        schema = int(metadata["schema"])
        if schema <= SCHEMA:
            return _unpack(json.loads(metadata["tree"]), tensors)  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is not a checkpoint of Esper's, or a damaged one "
            f"({type(error).__name__}: {error})"
        ) from error
    raise StoreError(
        f"checkpoint {path} has schema {schema}, this version reads up to {SCHEMA}; upgrade "
        "esper-morph"
    )


def _pack(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str | int)]
        if odd:
            raise TypeError(f"keys of a checkpoint are strings or integers, not {odd[0]!r}")
        return {"items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds plain values and tensors, not {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[str(value["tensor"])]
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    return value
