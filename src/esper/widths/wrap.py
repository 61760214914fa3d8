"""Wrap a model: seeds beside layers, and in the widths between them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from esper.blueprints import BLUEPRINTS, canonical, for_widths
from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.patterns import matches
from esper.contracts.site import Site
from esper.execution import surgery
from esper.execution.copies.followers import copies_inside, plain_averages, remember, watch
from esper.execution.fast_paths import drop_compiled_graphs
from esper.execution.passes.isolation import LossFn
from esper.widths.find import names_of, sites
from esper.widths.found import Sites, Width
from esper.widths.kasmina_width import CHILD, KasminaWidth, find_crossings

M = TypeVar("M", bound=nn.Module)

Seeds = Sequence[str] | Mapping[str, Sequence[str] | str] | None

DEFAULT = ("units", "units_select", "units_split", "heads")
"""Blueprints of a width's seeds, in turn: those that fit it."""


def wrap(  # noqa: PLR0913 (the public contract)
    model: M,
    layers: Sequence[str] | str = (),
    seeds: Seeds = None,
    *,
    seeds_per_layer: int | None = None,
    layout: Mapping[str, str] | None = None,
    widen: Sequence[str] | str = (),
    example: Any = None,
    loss_fn: LossFn | None = None,
) -> M:
    """Put seeds beside layers and into widths, in place; outputs stay equal bit for bit.

    Args:
        model: The model; returned, or, if ``""`` is among the layers, what stands in its place.
        layers: Dotted names as in ``model.named_modules()``, or patterns: ``*`` is one part of a
            name, ``**`` any number, a leading ``*.`` any beginning. ``""`` is the whole model.
        seeds: Blueprint names, one for each seed of every site, or by the name or pattern of the
            site; a single name is one seed. Of a list, every site gets those that are of its
            kind; a kind of site that the list has none for gets its default ones.
        seeds_per_layer: Number of seeds instead, of default blueprints; 4 if neither is given.
        layout: Axes of a layer's input, where they cannot be observed: ``{"enc": "TBF"}``, of
            B batch, T time, L length, H height, W width, F features, C channels. Of T, kernels read
            the past alone.
        widen: Widths that may grow, by the name of a layer that gives their units, or patterns;
            ``"auto"`` for all that can, as `sites` finds them, and that a blueprint given fits.
        example: A batch on which the widths are found and proved, as ``loss_fn`` takes it; without
            ``loss_fn``, what the model is called with.
        loss_fn: ``loss_fn(model, batch)``, as for `Tamiyo`.

    Raises:
        ConfigError: if a name is unknown, wrapped already, shared, sharded, or lazy and not
            initialised, a pattern matches nothing, a blueprint is unknown or of the wrong kind, a
            layout means nothing, a width cannot grow or grows already, or there is no example. The
            model is then unchanged.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model = wrap(model, widen="auto", example=torch.ones(3, 4))
        >>> list(surgery.name_layers(model))
        ['0:width']
    """
    _require_module(model)
    if not widen:
        return surgery.wrap(model, layers, seeds, seeds_per_layer=seeds_per_layer, layout=layout)
    if example is None:
        raise ConfigError(
            "widen needs an example, on which the widths are found and proved: a batch, as "
            "esper.wrap(model, widen='auto', example=batch, loss_fn=loss_fn)"
        )
    if seeds is not None and seeds_per_layer is not None:
        raise ConfigError("give seeds or seeds_per_layer, not both")
    wanted = _wanted(widen)
    beside, between = _by_kind(seeds, layers=bool(layers))
    before = surgery.seeded_modules(model)
    if layers:
        given = {"seeds_per_layer": seeds_per_layer, "layout": layout}
        model = surgery.wrap(model, layers, beside, **given)  # type: ignore[arg-type]
    try:
        names = names_of(model)
        chosen = _chosen(sites(model, example, loss_fn), wanted, names)
        plans = {width: _seeds_of(width, between, seeds_per_layer) for width in chosen}
        _widen(model, _fitted(plans, auto=wanted == ["auto"]), names)
    except ConfigError:
        for layer in surgery.seeded_modules(model).values():
            if layer not in before.values():
                model = surgery.put_back(model, layer)
        raise
    for made in surgery.seeded_modules(model).values():
        if isinstance(made, KasminaWidth) and made not in before.values():
            made.default_seeds = between is None
    return model


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is {model!r}; give a torch.nn.Module, as esper.wrap(model, layers=['fc1'])"
        )


def _widen(
    model: nn.Module, plans: Mapping[Width, Sequence[str]], names: Mapping[str, nn.Module]
) -> None:
    """Put seeds into widths, of the model and of averages that were made before it was wrapped.

    Raises:
        ConfigError: if one has seeds already.
    """
    twice = [width.name for width in plans if CHILD in names[width.name]._modules]
    if twice:
        raise ConfigError(f"width {twice[0]!r} has seeds already; widen each width once")
    copies = plain_averages(model)
    inside = {width: list(_copies_inside(model, width)) for width in plans}
    for width, seeds in plans.items():
        made = _put(names, width, seeds)
        remember((made, _put(names, twin, seeds)) for twin in inside[width])
        remember((made, _put(names_of(copy), width, seeds)) for copy in copies)
    for one in (model, *copies):
        surgery.check_topology(one)
        widths = surgery.seeded_modules(one).values()
        find_crossings(width for width in widths if isinstance(width, KasminaWidth))
    watch()
    drop_compiled_graphs()


def _copies_inside(model: nn.Module, width: Width) -> Iterator[Width]:
    """The same width in frozen copies of its layers, as a target network in the model."""
    there = dict(model.named_modules())
    found: dict[str, list[str]] = {}
    for name, path in copies_inside(model, [m.name for m in width.members if m.name in there]):
        found.setdefault(name, []).append(path)
    for paths in zip(*(found.get(member.name, ()) for member in width.members), strict=False):
        members = (replace(m, name=path) for m, path in zip(width.members, paths, strict=True))
        yield replace(width, name=paths[0], members=tuple(members))


def _put(names: Mapping[str, nn.Module], width: Width, seeds: Sequence[str]) -> KasminaWidth:
    made = KasminaWidth(width, names, seeds=seeds)
    made.producer.add_module(CHILD, made)
    return made


def _wanted(widen: Any) -> list[str]:
    """Names of widths that are meant.

    Raises:
        ConfigError: if they are no names.
    """
    if not isinstance(widen, Sequence):
        raise ConfigError(f"widen is {widen!r}; give 'auto', or a list of names of widths")
    return [widen] if isinstance(widen, str) else list(widen)


def _chosen(found: Sites, wanted: Sequence[str], names: Collection[str]) -> list[Width]:
    """Widths that are meant, each once.

    Raises:
        ConfigError: if one is unknown or cannot grow, or none can.
    """
    if wanted == ["auto"]:
        able = [width for width in found if not width.refused]
        if not able:
            raise ConfigError(f"no width of the model can grow:\n{found}")
        return able
    chosen: dict[str, Width] = {}
    for text in wanted:
        name = Site.parse(text).name
        fitting = [w for w in found if any(matches(name, n) for n in (w.name, *w.producers))]
        beside = next((w.name for w in found if name in (*w.norms, *w.consumers)), "")
        if not fitting and beside:
            raise ConfigError(
                f"{name!r} gives no units; name the layer that does: widen=[{beside!r}]"
            )
        if not fitting and name in names:
            raise ConfigError(
                f"width {name!r} cannot grow: the example does not reach {name!r}, or it is no "
                "layer whose units can be followed; give an example and a loss_fn that reach it"
            )
        if not fitting:
            raise ConfigError(
                unknown_name("width", name, ["auto", *(width.name for width in found)])
            )
        refused = [width for width in fitting if width.refused]
        if refused and (len(refused) == len(fitting) or "*" not in name):
            raise ConfigError(
                f"width {refused[0].name!r} cannot grow: {refused[0].refused}. "
                "print(esper.sites(model, batch)) shows those that can"
            )
        chosen |= {width.name: width for width in fitting if not width.refused}
    return list(chosen.values())


def _by_kind(seeds: Seeds, *, layers: bool) -> tuple[Seeds, Seeds]:
    """Seeds for layers, and seeds for widths; of a list, each takes those of its kind.

    Raises:
        ConfigError: if a blueprint is unknown.
    """
    if seeds is None or isinstance(seeds, Mapping):
        return seeds, seeds
    seeds = [seeds] if isinstance(seeds, str) else seeds
    for name in seeds:
        BLUEPRINTS.load(name)
    units = [name for name in seeds if for_widths(name)]
    beside = [name for name in seeds if name not in units]
    return beside or None, (units or None) if layers else seeds


def _fitted(plans: Mapping[Width, Sequence[str]], *, auto: bool) -> Mapping[Width, Sequence[str]]:
    """Plans without the widths that none of the blueprints fits, of all that can grow.

    Raises:
        ConfigError: if such a width was named, or there is no other.
    """
    fitted = {width: seeds for width, seeds in plans.items() if seeds}
    left = next((width for width in plans if width not in fitted), None)
    if left is not None and not (auto and fitted):
        raise ConfigError(
            f"none of the blueprints given fits {str(left.site)!r}, whose units are "
            f"{'heads' if left.heads else 'no heads'}; those that fit: {_listed(left)}"
        )
    return fitted


def _fits(width: Width, name: str) -> bool:
    return ("heads" if width.heads else "width") in BLUEPRINTS.create(name).kinds


def _listed(width: Width) -> str:
    return ", ".join(name for name in BLUEPRINTS.names() if _fits(width, name))


def _seeds_of(width: Width, seeds: Seeds, count: int | None) -> tuple[str, ...]:
    """Blueprints of a width's seeds; of those given, the ones that fit it.

    Raises:
        ConfigError: if none is given, or one is not of units.
    """
    site = str(width.site)
    if isinstance(seeds, Mapping):
        keys = [key for key in seeds if matches(key, site)]
        if not keys:
            raise ConfigError(f"seeds names no blueprints for {site!r}")
        seeds = seeds[site if site in keys else keys[0]]
    if isinstance(seeds, str):
        seeds = [seeds]
    if seeds is None:
        fitting = [name for name in DEFAULT if _fits(width, name)]
        count = 3 if count is None else count
        if count < 1:
            raise ConfigError(f"seeds_per_layer is {count}; it must be at least 1")
        return tuple(fitting[index % len(fitting)] for index in range(count))
    for name in seeds:
        BLUEPRINTS.load(name)
        if not for_widths(name):
            raise ConfigError(
                f"blueprint {name!r} is not for {site!r}; those that fit: {_listed(width)}"
            )
    if not seeds:
        raise ConfigError(f"{site!r} got no seeds; give at least one blueprint name")
    return tuple(canonical(name) for name in seeds if _fits(width, name))
