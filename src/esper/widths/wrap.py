"""Wrap a model: seeds beside layers, and in the widths between them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from esper.blueprints import BLUEPRINTS
from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.site import Site
from esper.execution import surgery
from esper.execution.copies.followers import plain_averages, remember
from esper.execution.fast_paths import drop_compiled_graphs
from esper.execution.passes.isolation import LossFn
from esper.widths.find import names_of, sites
from esper.widths.found import Sites, Width
from esper.widths.kasmina_width import CHILD, KasminaWidth, find_crossings

M = TypeVar("M", bound=nn.Module)

Seeds = Sequence[str] | Mapping[str, Sequence[str]] | None

DEFAULT = ("units", "units_select", "units_split")
"""Blueprints of a width's seeds, in turn."""


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
            site. Of a list, every site gets those that are of its kind.
        seeds_per_layer: Number of seeds instead, of default blueprints; 4 if neither is given.
        layout: Axes of a layer's input, where they cannot be observed: ``{"enc": "TBF"}``, of
            B batch, T time, L length, H height, W width, F features, C channels. Of T, kernels read
            the past alone.
        widen: Widths that may grow, by the name of a layer that gives their units, or patterns;
            ``"auto"`` for all that can, as `sites` finds them.
        example: A batch on which the widths are found and proved, as ``loss_fn`` takes it; without
            ``loss_fn``, what the model is called with.
        loss_fn: ``loss_fn(model, batch)``, as for `Tamiyo`.

    Raises:
        ConfigError: if a name is unknown, wrapped already, shared, sharded, or lazy and not
            initialised, a pattern matches nothing, a blueprint is unknown or of the wrong kind, a
            layout means nothing, a width cannot grow or grows already, or there is no example. The
            model is then unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model = wrap(model, widen="auto", example=torch.ones(3, 4))
        >>> list(surgery.name_layers(model))
        ['0:width']
    """
    if not widen:
        return surgery.wrap(model, layers, seeds, seeds_per_layer=seeds_per_layer, layout=layout)
    if example is None:
        raise ConfigError(
            "widen needs an example, on which the widths are found and proved: a batch, as "
            "esper.wrap(model, widen='auto', example=batch, loss_fn=loss_fn)"
        )
    beside, between = _by_kind(seeds)
    before = surgery.seeded_modules(model)
    if layers:
        given = {"seeds_per_layer": seeds_per_layer, "layout": layout}
        model = surgery.wrap(model, layers, beside, **given)  # type: ignore[arg-type]
    try:
        found = sites(model, example, loss_fn)
        chosen = _chosen(found, [widen] if isinstance(widen, str) else list(widen))
        names = names_of(model)
        plans = [(w, _seeds_of(w, between, seeds_per_layer)) for w in chosen]
        twice = [w.name for w in chosen if CHILD in names[w.name]._modules]
        if twice:
            raise ConfigError(f"width {twice[0]!r} has seeds already; widen each width once")
    except ConfigError:
        for layer in surgery.seeded_modules(model).values():
            if layer not in before.values():
                model = surgery.put_back(model, layer)
        raise
    copies = plain_averages(model)
    for width, blueprints in plans:
        made = _put(names, width, blueprints)
        made.default_seeds = between is None
        remember((made, _put(names_of(copy), width, blueprints)) for copy in copies)
    for one in (model, *copies):
        surgery.check_topology(one)
        widths = surgery.seeded_modules(one).values()
        find_crossings(width for width in widths if isinstance(width, KasminaWidth))
    drop_compiled_graphs()
    return model


def _put(names: Mapping[str, nn.Module], width: Width, seeds: Sequence[str]) -> KasminaWidth:
    made = KasminaWidth(width, names, seeds=seeds)
    made.producer.add_module(CHILD, made)
    return made


def _chosen(found: Sites, wanted: Sequence[str]) -> list[Width]:
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
        fitting = [
            w for w in found if any(surgery.matches(name, n) for n in (w.name, *w.producers))
        ]
        if not fitting:
            raise ConfigError(unknown_name("width", name, [width.name for width in found]))
        refused = [width for width in fitting if width.refused]
        if refused and (len(refused) == len(fitting) or "*" not in name):
            raise ConfigError(
                f"width {refused[0].name!r} cannot grow: {refused[0].refused}. "
                "print(esper.sites(model, batch)) shows those that can"
            )
        chosen |= {width.name: width for width in fitting if not width.refused}
    return list(chosen.values())


def _by_kind(seeds: Seeds) -> tuple[Seeds, Seeds]:
    """Seeds for layers, and seeds for widths."""
    if seeds is None or isinstance(seeds, Mapping | str):
        return seeds, seeds
    known = [name for name in seeds if name in BLUEPRINTS.names()]
    units = [name for name in known if _is_of_units(name)]
    return [name for name in seeds if name not in units] or None, units or None


def _is_of_units(name: str) -> bool:
    return "width" in BLUEPRINTS.create(name).kinds


def _seeds_of(width: Width, seeds: Seeds, count: int | None) -> tuple[str, ...]:
    """Blueprints of a width's seeds.

    Raises:
        ConfigError: if one is not of units.
    """
    if isinstance(seeds, Mapping):
        keys = [key for key in seeds if surgery.matches(key, str(width.site))]
        seeds = seeds[keys[0]] if keys else None
    if seeds is None:
        return tuple(DEFAULT[index % len(DEFAULT)] for index in range(count or len(DEFAULT)))
    for name in seeds:
        if name not in BLUEPRINTS.names():
            raise ConfigError(unknown_name("blueprint", name, BLUEPRINTS.names()))
        if not _is_of_units(name):
            units = ", ".join(name for name in BLUEPRINTS.names() if _is_of_units(name))
            raise ConfigError(
                f"blueprint {name!r} is not for {width.site}; those for widths: {units}"
            )
    return tuple(seeds)
