"""Topology of a wrapped layer, as JSON in its state dict.

It travels with the state dict, so a fresh model, wrapped in the same way, is regrown by
``load_state_dict``. A topology that cannot be rebuilt is refused before anything has changed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError, EsperError
from esper.contracts.seeds import SeedState
from esper.execution.kernel import Kernel, Recipe
from esper.execution.seed import Seed

SCHEMA = 1
KEY = "_extra_state"

_OWN = ("schema", "seeds", "fossils")
_DAMAGE = (
    *(AttributeError, KeyError, TypeError, ValueError, IndexError),
    *(OverflowError, RecursionError, RuntimeError),
)


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """Topology of a layer, rebuilt and ready to be put in place."""

    seeds: tuple[tuple[Mapping[str, Any], Recipe | None, nn.Module | None], ...]
    fossils: tuple[nn.Module, ...]
    records: list[dict[str, Any]]
    facts: Mapping[str, Any]
    """Further facts of the site, as its number of units."""


def pack(
    seeds: Sequence[Seed], records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> Tensor:
    """Topology and life cycle as JSON in a byte tensor, which any tensor format can carry."""
    state = {
        "schema": SCHEMA,
        "seeds": [seed.to_json() for seed in seeds],
        "fossils": list(records),
        **facts,
    }
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8).clone()


def plan(
    packed: Any,
    layer: str,
    seeds: Sequence[Seed],
    fossils: Sequence[tuple[nn.Module, Any]],
    facts: Mapping[str, Any],
) -> Plan:
    """Rebuild a packed topology for a layer with these seeds, fossils and records; change nothing.

    Those of the checkpoint must have ``facts`` of the same names and types.

    A kernel that the layer has already, of the same structure, is taken on as it is, so that an
    optimizer which holds its parameters goes on training them.

    Raises:
        ConfigError: if it cannot be read, is from a newer version, has another number of seeds, or
            holds a custom module that is not loaded.
        KernelError: if a blueprint no longer builds what it built.
    """
    state = _read(packed, layer)
    try:
        return _planned(state, layer, seeds, fossils, facts)
    except EsperError:
        raise
    except _DAMAGE as error:
        raise _damaged(layer, error) from error


def _planned(
    state: Mapping[str, Any],
    layer: str,
    seeds: Sequence[Seed],
    fossils: Sequence[tuple[nn.Module, Any]],
    facts: Mapping[str, Any],
) -> Plan:
    for name, value in facts.items():
        if type(state[name]) is not type(value):
            raise TypeError(f"{name} is {state[name]!r:.80}")
    for saved in state["seeds"]:
        named = saved["blueprint"], saved["kernel_id"]
        if SeedState(saved["state"]) and not all(isinstance(one, str | None) for one in named):
            raise TypeError(f"names of a seed are {named!r:.80}")
    if len(state["seeds"]) != len(seeds):
        raise ConfigError(
            f"layer {layer!r} has {len(seeds)} seeds and the checkpoint has "
            f"{len(state['seeds'])}; wrap the fresh model with as many"
        )
    records = list(state["fossils"])
    wanted = {i: _part(saved) for i, saved in enumerate(state["seeds"]) if saved["loaded"]}
    wanted |= {_fossil(i): _part(record) for i, record in enumerate(records)}
    present = {i: seed.as_kernel() for i, seed in enumerate(seeds) if seed.kernel is not None}
    for index, (module, record) in enumerate(fossils):
        present[_fossil(index)] = Kernel(module=module, **_part(record)._asdict())
    kept = _kept(wanted, present)
    modules = {
        place: kept[place] if place in kept else _built(layer, part)
        for place, part in wanted.items()
    }
    return Plan(
        seeds=tuple(
            (saved, _part(saved).recipe, modules.get(index))
            for index, saved in enumerate(state["seeds"])
        ),
        fossils=tuple(modules[_fossil(index)] for index in range(len(records))),
        records=records,
        facts={key: value for key, value in state.items() if key not in _OWN},
    )


def blueprints(packed: Any, layer: str) -> list[str]:
    """Blueprints of the seeds in a packed topology, by index; raises as ``plan``."""
    state = _read(packed, layer)
    try:
        return [saved["blueprint"] for saved in state["seeds"]]
    except _DAMAGE as error:
        raise _damaged(layer, error) from error


def twin(
    seeds: Sequence[Seed],
    fossils: Sequence[tuple[nn.Module, dict[str, Any]]],
    own: Iterable[tuple[str, nn.Module]],
    facts: Mapping[str, Any],
) -> Plan:
    """Topology for a copy of a layer with these seeds, fossils and records.

    Kernels that the copy has in its output already, ``own`` by id, stay; others are copied.
    """
    present: dict[str, list[nn.Module]] = {}
    for kernel_id, kernel in own:
        present.setdefault(kernel_id, []).append(kernel)

    def of(kernel_id: str, kernel: nn.Module) -> nn.Module:
        found = present.get(kernel_id)
        return found.pop(0) if found else deepcopy(kernel)

    absorbed = tuple(of(record["kernel_id"], kernel) for kernel, record in fossils)
    slots = []
    for seed in seeds:
        held = None if seed.kernel is None else of(str(seed.kernel_id), seed.kernel)
        slots.append((seed.to_json(), seed.recipe, held))
    records = [dict(record) for _, record in fossils]
    return Plan(tuple(slots), absorbed, records, facts)


class _Part(NamedTuple):
    """Kernel in a packed topology, without its weights."""

    kernel_id: str
    recipe: Recipe | None


def _part(saved: Mapping[str, Any]) -> _Part:
    recipe = Recipe.from_json(saved["recipe"]) if saved["recipe"] else None
    return _Part(saved["kernel_id"], recipe)


def _fossil(index: int) -> int:
    """Place of a fossil; those of seeds are their indices."""
    return -1 - index


def _kept(wanted: Mapping[int, _Part], present: Mapping[int, Kernel]) -> dict[int, nn.Module]:
    """Present kernels that stay, by the place where they are wanted; each is used once."""
    kept: dict[int, nn.Module] = {}
    left = dict(present)
    # The same kernel in its place, then the same one elsewhere, then one like it in its place.
    for same_id, same_place in ((True, True), (True, False), (False, True)):
        for place, part in wanted.items():
            if place in kept:
                continue
            for where, kernel in list(left.items()):
                if (
                    (where == place or not same_place)
                    and (kernel.kernel_id == part.kernel_id or not same_id)
                    and _structure(kernel.recipe) == _structure(part.recipe)
                ):
                    kept[place] = left.pop(where).module
                    break
    return kept


def _structure(recipe: Recipe | None) -> Recipe | None:
    return replace(recipe, seed=0) if recipe is not None else None


def _read(packed: Any, layer: str) -> dict[str, Any]:
    try:
        # Rounded, because an average over a whole state dict leaves numbers beside the whole ones.
        state = json.loads(bytes(packed.cpu().double().round().int().tolist()))
        schema = int(state["schema"])
    except _DAMAGE as error:
        raise _damaged(layer, error) from error
    if schema > SCHEMA:
        raise ConfigError(
            f"layer {layer!r}: the checkpoint has schema {schema}, this version reads up to "
            f"{SCHEMA}; upgrade esper-morph"
        )
    return dict(state)


def _damaged(layer: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"layer {layer!r}: the checkpoint's {KEY} is not the topology of a wrapped layer "
        f"({type(error).__name__}: {' '.join(str(error).split())})"
    )


def _built(layer: str, part: _Part) -> nn.Module:
    if part.recipe is not None:
        return part.recipe.build()
    raise ConfigError(
        f"layer {layer!r} held or absorbed {part.kernel_id!r}, a module of the user's own that no "
        "recipe can rebuild; load_kernel it again before loading this state dict, load kernels "
        "with a recipe if they must survive a checkpoint, or keep the model with esper.harden"
    )


def restore(
    seed: Seed, saved: Mapping[str, Any], recipe: Recipe | None, kernel: nn.Module | None
) -> None:
    """Set the state of a slot, and its kernel."""
    seed.blueprint, seed.kernel_id, seed.recipe = saved["blueprint"], saved["kernel_id"], recipe
    seed.place(kernel, concealed=True)
    seed.move(SeedState(saved["state"]))


def read_plain(state_dict: dict[str, Any], prefix: str, layer: nn.Module, *, empty: bool) -> None:
    """Make what a layer had before it was wrapped the state of a layer without kernels, in place.

    Args:
        state_dict: Of the whole model, or of this layer; names under the prefix are changed.
        prefix: Of the layer's names, as ``"fc1."``.
        layer: The wrapped layer.
        empty: True if it has no kernels; otherwise theirs are missing, as PyTorch then says.
    """
    parts = tuple(f"{prefix}{name}." for name in layer._modules)
    names = [name for name in state_dict if name.startswith(prefix)]
    if any(name.startswith(parts) for name in names):
        return
    host = layer._modules.get("host")
    for name in names if host is not None else ():
        state_dict[f"{prefix}host.{name.removeprefix(prefix)}"] = state_dict.pop(name)
    if empty and (names or host is None or not host.state_dict()):
        state_dict[f"{prefix}{KEY}"] = layer.get_extra_state()
        layer.get_submodule("seeds").state_dict(destination=state_dict, prefix=f"{prefix}seeds.")
