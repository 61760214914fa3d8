"""Checkpoints: nested dictionaries of tensors and plain values, in one safetensors file, no pickle.

Tensors are stored as such, everything else as JSON in one more tensor, with numbers for tensors.
A file is written beside the old one, has a checksum over all of it, and then takes its place, so a
process that dies while writing, or a machine, leaves the previous checkpoint whole.
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from esper.contracts.errors import StoreError
from esper.stores.files import write_whole

SCHEMA = 2
_TREE = "tree"


def save(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree of dictionaries, lists, tensors, numbers, strings, booleans and ``None``.

    Dictionary keys may be integers, as in an optimizer's state; they come back as integers. When
    this returns, the file is on the disk.

    Raises:
        TypeError: if the tree holds anything else.
        StoreError: if the file cannot be written; one that was there before is still there.
    """
    tensors: list[Tensor] = []
    text = json.dumps(_pack(tree, tensors)).encode()
    stored = {str(i): t.detach().cpu().contiguous().clone() for i, t in enumerate(tensors)}
    stored[_TREE] = torch.frombuffer(bytearray(text), dtype=torch.uint8)  # a header has a limit
    facts = {"schema": str(SCHEMA), "checksum": _checksum(stored)}
    try:
        write_whole(path, to_bytes(stored, metadata=facts))
    except (OSError, SafetensorError) as error:
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
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise StoreError(f"checkpoint {path} cannot be read: {error}") from error
    schema = metadata.get("schema", "")
    if schema.isdecimal() and schema.isascii() and int(schema) > SCHEMA:
        raise StoreError(
            f"checkpoint {path} has schema {schema}, this version reads up to {SCHEMA}; upgrade "
            "esper-morph"
        )
    if schema == "1":  # before there were checksums
        text = metadata.get("tree", "").encode()
    elif schema == str(SCHEMA) and metadata.get("checksum") == _checksum(tensors):
        text = tensors.pop(_TREE, torch.zeros(0)).numpy().tobytes()
    else:
        raise StoreError(
            f"{path} is not a checkpoint of Esper's, or a damaged one: its checksum is wrong; "
            "begin the run anew, or restore the file from a copy"
        )
    try:
        return _unpack(json.loads(text), tensors)  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{path} is not a checkpoint of Esper's, or a damaged one "
            f"({type(error).__name__}: {error})"
        ) from error


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Digest of names, types, shapes and every byte."""
    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
