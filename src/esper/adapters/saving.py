"""Adapter files: kernels and head of a model, without its host.

``adapter.json`` says what there is, ``adapter.safetensors`` has the values, one after the other in
one row of float32 numbers, or float64 if any is: so a file of few parameters is not mostly names.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from esper.adapters.host import fingerprint, freeze, named_host, named_values
from esper.adapters.switching import (
    DEFAULT,
    Adapter,
    adapter_names,
    add_adapter,
    current,
    head_names,
)
from esper.contracts.errors import ConfigError, EsperError, KernelError, StoreError
from esper.contracts.schema import require_schema
from esper.execution.kernel import Recipe
from esper.execution.surgery import kasmina_layers, unwrap, wrap
from esper.stores.files import write_together

SCHEMA = 1
_LIST, _VALUES = "adapter.json", "adapter.safetensors"


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write the kernels and the head of the adapter that is on, and no more.

    Args:
        model: A model that `esper.adapt` adapted, or a frozen one with absorbed kernels.
        folder: Made if it is not there; an adapter in it is replaced.

    Returns:
        The folder.

    Raises:
        LifecycleError: if a kernel is being blended in; ``tamiyo.finish()`` ends the adaptation. Or
            in a block of `esper.disabled`.
        ConfigError: if there is nothing to save, or a custom kernel has no recipe.
        StoreError: if it cannot be written; an adapter that was there before is still there.
    """
    adapter, place = current(model), Path(folder)
    if not (adapter.kernels or adapter.head):
        raise ConfigError("the model has no adapter: no kernels, and no trainable head")
    kernels = []
    for name, held in adapter.kernels.items():
        for kernel, record in held:
            if record["recipe"] is None:
                raise ConfigError(
                    f"kernel {record['kernel_id']!r} of layer {name!r} is a module of your own, "
                    "without a recipe that would build it again; keep the model by esper.harden"
                )
            kernels.append({"layer": name, "dtype": str(_dtype(kernel)), **record})
    head = {name: list(value.shape) for name, value in adapter.head.items()}
    data = {
        "schema": SCHEMA,
        "name": adapter_names(model)[0] if adapter_names(model) else DEFAULT,
        "host": {"class": type(model).__name__, "fingerprint": fingerprint(model, head)},
        "kernels": kernels,
        "head": head,
    }
    values = list(_values(adapter))
    wide = torch.float64 if any(v.dtype is torch.float64 for v in values) else torch.float32
    rows = [value.detach().flatten().to("cpu", wide) for value in values]
    content = to_bytes({"values": torch.cat(rows)})
    listed = json.dumps({**data, "checksum": _checksum(data, content)}, indent=1)
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_together({place / _VALUES: content, place / _LIST: listed.encode()})
    except OSError as error:
        raise StoreError(
            f"the adapter cannot be written to {str(place)!r}: {error}; one that was there before "
            "is still there"
        ) from error
    return place


def load_adapter(model: nn.Module, folder: str | Path, *, name: str | None = None) -> str:
    """Put a saved adapter on its host, beside those that are there, and turn it on.

    Kernels and head can be trained on; the rest of the host is frozen, as `esper.adapt` does.

    Args:
        model: The host, wrapped or not; layers that are not wrapped yet are, in place.
        folder: What `save_adapter` wrote.
        name: Name of the adapter; by default the one under which it was saved.

    Returns:
        The name.

    Raises:
        ConfigError: if the folder has no adapter, one of another schema or host, or damaged values;
            or the model has an adapter of this name. The model is left as it was.
        LifecycleError: in a block of `esper.disabled`.
    """
    data, values = _read(Path(folder))
    _check_host(model, data, Path(folder))
    adapter = _built(data, values, Path(folder))
    wanted = name or str(data["name"])
    before = set(kasmina_layers(model))
    plan = {layer: [r["recipe"]["blueprint"] for _, r in held]
            for layer, held in adapter.kernels.items()}  # fmt: skip
    there = {layer.name for layer in kasmina_layers(model).values()}
    new = {layer: seeds for layer, seeds in plan.items() if layer not in there}
    try:
        if new:
            wrap(model, list(new), new)
        add_adapter(model, wanted, adapter)
    except EsperError:
        if not before:
            unwrap(model, discard_grown=True)
        raise
    freeze(model, adapter.head)
    return wanted


def _read(place: Path) -> tuple[dict[str, Any], Tensor]:
    for name in (_LIST, _VALUES):
        if not (place / name).is_file():
            raise ConfigError(
                f"folder {str(place)!r} has no {name}; give one that esper.save_adapter wrote"
            )
    try:
        data = json.loads((place / _LIST).read_text(encoding="utf-8"))
        require_schema(data, "adapter", SCHEMA)
        content = (place / _VALUES).read_bytes()
        if data.pop("checksum", None) != _checksum(data, content):
            raise ConfigError(
                f"the adapter in {str(place)!r} is damaged: its checksum is wrong; restore "
                f"{_LIST} and {_VALUES} from one copy"
            )
        values = load(content)["values"]
        _ = data["host"]["fingerprint"], data["kernels"], data["head"], data["name"]
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ConfigError(f"the adapter in {str(place)!r} is damaged: {error}") from error
    return data, values


def _checksum(data: dict[str, Any], values: bytes) -> str:
    text = json.dumps(data, sort_keys=True)
    return blake2b(text.encode() + values, digest_size=16).hexdigest()


def _check_host(model: nn.Module, data: dict[str, Any], place: Path) -> None:
    there = named_values(model)
    strange = next((n for n, shape in data["head"].items()
                    if n not in there or list(there[n].shape) != shape), "")  # fmt: skip
    if not strange and fingerprint(model, data["head"]) == data["host"]["fingerprint"]:
        return
    why = "the model's frozen parameters are not those that it was trained beside"
    if strange:
        why = f"its head has {strange!r}, and the model has no such parameter or buffer"
    raise ConfigError(
        f"the adapter in {str(place)!r} is of another host, a {data['host']['class']}: {why}; load "
        "the weights of that host first"
    )


def _built(data: dict[str, Any], values: Tensor, place: Path) -> Adapter:
    adapter = Adapter(
        head={
            name: torch.empty(shape, dtype=values.dtype, device="cpu")
            for name, shape in data["head"].items()
        }
    )
    try:
        for one in data["kernels"]:
            kernel = Recipe.from_json(one["recipe"]).build().to(values.dtype)
            record = {"kernel_id": one["kernel_id"], "recipe": one["recipe"]}
            adapter.kernels.setdefault(one["layer"], []).append((kernel, record))
    except (KeyError, TypeError, ValueError, KernelError) as error:
        raise ConfigError(f"the adapter in {str(place)!r} is damaged: {error}") from error
    wanted = list(_values(adapter))
    total = sum(value.numel() for value in wanted)
    if values.ndim != 1 or values.numel() != total:
        raise ConfigError(
            f"the adapter in {str(place)!r} is damaged: {_VALUES} has {values.numel()} values, and "
            f"{_LIST} names {total}"
        )
    start = 0
    with torch.no_grad():
        for value in wanted:
            value.copy_(values[start : start + value.numel()].view(value.shape))
            start += value.numel()
    return adapter


def _values(adapter: Adapter) -> Iterator[Tensor]:
    """Tensors of an adapter in the order of its file: kernel by kernel, then the head."""
    for held in adapter.kernels.values():
        for kernel, _ in held:
            yield from kernel.parameters()
    yield from adapter.head.values()


def _dtype(kernel: nn.Module) -> torch.dtype:
    return next((p.dtype for p in kernel.parameters()), torch.float32)


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters are trained, and how many there are, as peft does."""
    host, names = named_host(model), set(head_names(model))
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    of_host = {name: trained.pop(id(p)) for name, p in host.items() if p.requires_grad}
    head = sum(size for name, size in of_host.items() if name in names)
    rest, kernels = sum(of_host.values()) - head, sum(trained.values())
    every, total = sum(p.numel() for p in model.parameters()), kernels + head + rest
    share = 100 * total / every if every else 0.0
    further = f", {rest:,} in the rest of the host" if rest else ""
    print(  # noqa: T201
        f"trainable params: {total:,} ({kernels:,} in kernels, {head:,} in the head{further}) || "
        f"all params: {every:,} || trainable%: {share:.4f}"
    )
