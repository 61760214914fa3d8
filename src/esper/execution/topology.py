"""Topology of a wrapped layer, as JSON in its state dict.

It travels with the state dict, so a fresh model, wrapped in the same way, is regrown by
``load_state_dict``. A topology that cannot be rebuilt is refused before anything has changed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState
from esper.execution.kernel import Recipe
from esper.execution.seed import Seed

SCHEMA = 1
KEY = "_extra_state"


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """Topology of a layer, rebuilt and ready to be put in place."""

    seeds: tuple[tuple[Mapping[str, Any], Recipe | None, nn.Module | None], ...]
    fossils: tuple[nn.Module, ...]
    records: list[dict[str, Any]]
    mutates_input: bool


def pack(
    seeds: Sequence[Seed], records: Sequence[Mapping[str, Any]], *, mutates_input: bool
) -> Tensor:
    """Topology and life cycle as JSON in a byte tensor, which any tensor format can carry."""
    state = {
        "schema": SCHEMA,
        "seeds": [seed.to_json() for seed in seeds],
        "fossils": list(records),
        "mutates_input": mutates_input,
    }
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8).clone()


def plan(packed: Any, layer: str, seeds: Sequence[Seed], fossils: Sequence[nn.Module]) -> Plan:
    """Rebuild a packed topology for a layer that has these seeds and fossils; change nothing.

    Raises:
        ConfigError: if it cannot be read, is from a newer version, has another number of seeds, or
            holds a custom module that is not loaded.
        KernelError: if a blueprint no longer builds what it built.
    """
    state = _read(packed, layer)
    if len(state["seeds"]) != len(seeds):
        raise ConfigError(
            f"layer {layer!r} has {len(seeds)} seeds and the checkpoint has "
            f"{len(state['seeds'])}; wrap the fresh model with as many"
        )
    slots = tuple(_slot(seed, saved) for seed, saved in zip(seeds, state["seeds"], strict=True))
    records = list(state["fossils"])
    own = dict(enumerate(fossils))
    return Plan(
        seeds=slots,
        fossils=tuple(_fossil(layer, record, own.get(i)) for i, record in enumerate(records)),
        records=records,
        mutates_input=bool(state["mutates_input"]),
    )


def _read(packed: Any, layer: str) -> dict[str, Any]:
    try:
        state = json.loads(bytes(packed.cpu().tolist()))
        schema = int(state["schema"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"layer {layer!r}: the checkpoint's {KEY} is not the topology of a wrapped layer "
            f"({type(error).__name__}: {error})"
        ) from error
    if schema > SCHEMA:
        raise ConfigError(
            f"layer {layer!r}: the checkpoint has schema {schema}, this version reads up to "
            f"{SCHEMA}; upgrade esper-morph"
        )
    return dict(state)


def _slot(
    seed: Seed, saved: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Recipe | None, nn.Module | None]:
    recipe = Recipe.from_json(saved["recipe"]) if saved["recipe"] else None
    if not saved["loaded"]:
        return saved, recipe, None
    if recipe is not None:
        return saved, recipe, recipe.build()
    if seed.kernel is None or seed.recipe is not None:
        raise ConfigError(
            f"seed {seed.name} held the kernel {saved['kernel_id']!r} of the user's own, which no "
            "recipe can rebuild; load_kernel it again before loading this state dict"
        )
    return saved, None, seed.kernel


def _fossil(layer: str, record: Mapping[str, Any], present: nn.Module | None) -> nn.Module:
    if record["recipe"] is not None:
        return Recipe.from_json(record["recipe"]).build()
    if present is not None:
        return present
    raise ConfigError(
        f"layer {layer!r} has absorbed {record['kernel_id']!r}, a module of the user's own "
        "that no recipe can rebuild; load kernels with a recipe if they must survive a "
        "checkpoint, or keep the model with esper.harden"
    )


def restore(seed: Seed, saved: Mapping[str, Any], recipe: Recipe | None) -> None:
    """Set the state of a slot, apart from its kernel."""
    seed.blueprint, seed.kernel_id = saved["blueprint"], saved["kernel_id"]
    seed.recipe, seed.state = recipe, SeedState(saved["state"])
