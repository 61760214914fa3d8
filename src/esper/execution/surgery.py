"""Surgery: wrap chosen layers of a model with seeds, and unwrap them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.parameter import is_lazy

from esper.blueprints import BLUEPRINTS, canonical, fitting, for_widths
from esper.contracts.errors import ConfigError, LifecycleError, unknown_name
from esper.contracts.patterns import matches, matching
from esper.contracts.seeds import LayerSpec, SeedState
from esper.execution import topology
from esper.execution.copies.folders import WRAPPED, forget_folders, mark_folders
from esper.execution.copies.followers import (
    copies_inside,
    follows,
    is_frozen_copy,
    plain_averages,
    remember,
    watch,
)
from esper.execution.fast_paths import (
    drop_compiled_graphs,
    enclosing_modules,
    fused_paths,
    refuse_unreached,
)
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.layouts.layout import check_layout
from esper.execution.seeded import Seeded

M = TypeVar("M", bound=nn.Module)

WHOLE = "(model)"
"""Name of the layer around a whole model, in messages and records."""

_FAMILIES = {
    "conv": ("conv_bottleneck", "depthwise", "conv_block"),
    "features": ("bottleneck", "gate", "glu", "lowrank"),
}


def wrap(
    model: M,
    layers: Sequence[str],
    seeds: Sequence[str] | Mapping[str, Sequence[str] | str] | None = None,
    *,
    seeds_per_layer: int | None = None,
    layout: Mapping[str, str] | None = None,
) -> M:
    """Wrap each named layer in a ``KasminaLayer``, in place; outputs stay equal bit for bit.

    A layer may lie inside another one. If the whole model is one, the layer around it is returned,
    to be called in its place.

    Args:
        model: Any module. Its layers keep their parameters, hooks, mode and ``requires_grad``.
        layers: Dotted names, as in ``model.named_modules()``; each maps a tensor to a tensor.
            Patterns too: ``*`` stands for one part of a name, ``**`` for any number of them, a
            leading ``*.`` for any beginning, as ``"*.mlp"``. ``""`` is the whole model.
        seeds: Blueprint of each seed, the same for all layers, or by layer or pattern; a single
            name is one seed.
        seeds_per_layer: Number of seeds instead: they take the default blueprints of the layer's
            kind (convolution or features) in turn. 4 if neither is given. The kind is corrected
            once the layer was observed.
        layout: Axes of a layer's input, where they cannot be observed: ``{"enc": "TBF"}``, of
            B batch, T time, L length, H height, W width, F features, C channels. Of T, kernels read
            the past alone.

    Raises:
        ConfigError: if a name is unknown, wrapped already, shared, sharded, or lazy and not
            initialised, a pattern matches nothing, a blueprint is unknown, or a layout means
            nothing. The model is then unchanged.

    Example:
        >>> model = wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), ["0", "2"])
        >>> model[0].seed_blueprints
        ('bottleneck', 'gate', 'glu', 'lowrank')
    """
    if isinstance(layers, str):
        layers = [layers]
    if not layers:
        raise ConfigError("layers is empty; name at least one layer, as in model.named_modules()")
    if seeds is not None and seeds_per_layer is not None:
        raise ConfigError("give seeds or seeds_per_layer, not both")
    found = {name: _host(model, name) for name in matching(_names(model), layers)}
    _refuse_shared(model, found)
    plans = {name: _plan(name, host, seeds, seeds_per_layer) for name, host in found.items()}
    layouts = _layouts(layout or {}, list(found))
    inside = copies_inside(model, found)
    copies = plain_averages(model)
    # Inner layers first: a name leads through the plain model only as long as it is plain.
    order = sorted(found, key=lambda name: -len(_parts(name)))
    made = {name: _put(model, name, plans[name]) for name in order}
    for name, layer in made.items():
        layer.stated_layout = layouts.get(name, "")
        layer.default_seeds = seeds is None
    remember((made[name], _put(model, copy, plans[name])) for name, copy in inside)
    for copy in copies:
        remember((made[name], _put(copy, name, plans[name])) for name in order if name)
        check_topology(copy)
    model = cast("M", made.get("", model))
    drop_compiled_graphs()
    check_topology(model)
    watch()
    return model


def _put(model: nn.Module, name: str, seeds: Sequence[str]) -> KasminaLayer:
    """Wrap one layer of a model, in place unless it is the whole model."""
    known = [s for layer in kasmina_layers(model).values() for s in layer.fused_paths]
    known_ones = (p for p in model.parameters() if not is_lazy(p) and p.is_floating_point())
    parent, _, child = name.rpartition(".")
    paths, like = fused_paths(model, name, known), next(known_ones, None)
    host = model.get_submodule(name)
    layer = KasminaLayer(host, name=name, seeds=seeds, like=like, fused_paths=paths)
    if name:
        setattr(model.get_submodule(parent), child, layer)
    return layer


def unwrap(model: M, *, discard_grown: bool = False) -> M:
    """Put every host layer back, in place; returns the model that was wrapped.

    Raises:
        LifecycleError: if a layer has grown, unless ``discard_grown`` lets its kernels go;
            ``esper.harden`` keeps them.
    """
    layers = seeded_modules(model)
    grown = [name for name, layer in layers.items() if layer.is_grown or layer.fossils]
    if grown and not discard_grown:
        raise LifecycleError(
            f"layer {grown[0]!r} has grown, and unwrap would lose its kernels; use "
            "esper.harden(model) to keep them, or unwrap(model, discard_grown=True)"
        )
    places = {la: la.release_host() for la in layers.values() if isinstance(la, KasminaLayer)}
    model = replace_layers(model, places)
    for layer in layers.values():
        layer.discard()
        for path in layer.fused_paths:
            path.allow(True)
    forget_topology(model)
    drop_compiled_graphs()
    return model


def kasmina_layers(model: nn.Module) -> dict[str, KasminaLayer]:
    """Wrapped layers by dotted name, in the order of the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, KasminaLayer)}


def seeded_modules(model: nn.Module) -> dict[str, Seeded]:
    """Wrapped layers and widths by dotted name, in the order of the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Seeded)}


def name_layers(model: nn.Module) -> dict[str, Seeded]:
    """Wrapped layers and widths by dotted name; each takes that name, as seen here, as its own.

    So a layer has one name in events, stores and checkpoints, however deep in other modules the
    wrapped model sits, and two wrapped models in one module do not share names. State dicts are
    checked at this model too, before any part of it is loaded.

    Raises:
        ConfigError: if a layer of the model is lazy, on the meta device or sharded, or was changed
            since its width was wrapped.
    """
    refuse_unready(model, "esper.Tamiyo, and before the optimizer")
    # Averages of the weights and target networks, kept inside the model, grow by themselves.
    found = {
        name: layer
        for name, layer in seeded_modules(model).items()
        if not follows(layer) and not is_frozen_copy(layer)
    }
    layers = {layer.plain_name(plain_name(model, path)): layer for path, layer in found.items()}
    for name, layer in layers.items():
        layer.rename(name)
        if why := layer.misfit(model):
            raise ConfigError(why)
    if layers:
        check_topology(model)
    return layers


def plain_name(model: nn.Module, path: str) -> str:
    """Name of a wrapped layer in the model as it was before layers around it were wrapped."""
    parts, module = [], model
    for part in _parts(path):
        if not (isinstance(module, KasminaLayer) and part == "host"):
            parts.append(part)
        module = getattr(module, part)
    return ".".join(parts) or WHOLE


def refuse_unready(
    model: nn.Module, before: str, *, name: str = "", with_values: bool = True
) -> None:
    """Refuse a module whose parameters or buffers have no shape yet, no values, or not all of them.

    Args:
        model: The module.
        before: What is about to be called, for the message.
        name: Its dotted name in the model.
        with_values: Whether it must have values; a model may be wrapped on the meta device.

    Raises:
        ConfigError: that names the layer which is lazy, on the meta device or sharded.
    """
    hosts = {layer.host: path for path, layer in kasmina_layers(model).items()}
    for path_inside, module in model.named_modules(prefix=name):
        path = hosts.get(module, path_inside)
        tensors = [*module._parameters.values(), *module._buffers.values()]
        held = [tensor for tensor in tensors if tensor is not None]
        subject = f"layer {path!r}" if path else "the model"
        if any(is_lazy(tensor) for tensor in held):
            raise ConfigError(
                f"{subject} is a {type(module).__name__} that is not initialised: its shape "
                f"is known after the first pass; run the model once on a batch before {before}"
            )
        if with_values and any(tensor.is_meta for tensor in held):
            raise ConfigError(
                f"{subject} is on the meta device, where it has shapes and no values; load the "
                "weights onto a device, or call model.to_empty(...) and initialise them, before "
                f"{before}"
            )
        if hasattr(module, "_fsdp_wrapped_module") or any(map(_is_sharded, held)):
            raise ConfigError(
                f"{subject} is sharded by FSDP, so this process holds a part of its parameters, "
                "and a kernel stands beside the whole layer; train the model with "
                "DistributedDataParallel, or in one process"
            )


def _is_sharded(tensor: Any) -> bool:
    """True for a DTensor and for the flat parameter of FSDP; their modules take long to import."""
    return hasattr(tensor, "placements") or getattr(tensor, "_is_flat_param", False)


def put_back(model: M, site: Seeded) -> M:
    """Undo the wrapping of one site, which has not grown; returns the model."""
    if isinstance(site, KasminaLayer):
        return replace_layers(model, {site: site.release_host()})
    site.discard()
    return model


def replace_layers(model: M, places: Mapping[KasminaLayer, nn.Module]) -> M:
    """Put other modules where wrapped layers are, in every place that holds them.

    Returns the model, or what takes its place if it is such a layer itself.
    """
    for layer, place in places.items():
        layer.move_hooks(place)
    found = list(model.named_modules(remove_duplicate=False))
    for name, module in reversed(found):  # inner ones first: the names lead through the outer ones
        if name and isinstance(module, KasminaLayer) and module in places:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, places[module])
    return (
        cast("M", places[model]) if isinstance(model, KasminaLayer) and model in places else model
    )


def _parts(name: str) -> list[str]:
    return name.split(".") if name else []


def _names(model: nn.Module) -> list[str]:
    """Dotted names of the modules that may be wrapped: none of a seed's, nor of a width's."""
    sites = seeded_modules(model).values()
    hidden = {m for site in sites for p in (site.seeds, site.fossils) for m in p.modules()}
    hidden |= {site for site in sites if not isinstance(site, KasminaLayer)}
    named = model.named_modules(remove_duplicate=False)
    return [path for path, module in named if path and module not in hidden]


def _host(model: nn.Module, name: str) -> nn.Module:
    names = _names(model)
    if name and name not in names:
        way_out = " Wrap the model before torch.compile" if hasattr(model, "_orig_mod") else ""
        raise ConfigError(unknown_name("layer", name, names) + way_out)
    refuse_unreached(model, name)
    host = model.get_submodule(name)
    refuse_unready(host, "esper.wrap", name=name, with_values=False)
    if isinstance(host, KasminaLayer) or (
        name.endswith("host") and isinstance(enclosing_modules(model, name)[-1], KasminaLayer)
    ):
        raise ConfigError(f"layer {name!r} is wrapped already; wrap each layer once")
    for site in seeded_modules(model).values():
        if site.ends_in(host):
            raise ConfigError(
                f"layer {name!r} has a part in {site.name!r}, which grows, and kernels beside the "
                "layer would not grow with it; wrap the one or widen the other"
            )
    return host


def _refuse_shared(model: nn.Module, found: Mapping[str, nn.Module]) -> None:
    named = list(model.named_modules(remove_duplicate=False))
    for name, host in found.items():
        places = [path for path, module in named if module is host]
        if len(places) > 1:
            others = ", ".join(path for path in places if path != name)
            raise ConfigError(
                f"layer {name!r} is shared: it is also {others}. A seed would act in all "
                "of them; give each place a module of its own"
            )


def _plan(
    name: str,
    host: nn.Module,
    seeds: Sequence[str] | Mapping[str, Sequence[str]] | None,
    seeds_per_layer: int | None,
) -> tuple[str, ...]:
    if isinstance(seeds, Mapping):
        fitting = [key for key in seeds if matches(key, name)]
        if not fitting:
            raise ConfigError(f"seeds names no blueprints for layer {name!r}")
        seeds = seeds[name if name in fitting else fitting[0]]
    if isinstance(seeds, str):
        seeds = [seeds]
    if seeds is None:
        count = 4 if seeds_per_layer is None else seeds_per_layer
        if count < 1:
            raise ConfigError(f"seeds_per_layer is {count}; it must be at least 1")
        convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in host.modules())
        return _default_seeds(count, convolves=convolves)
    for blueprint in seeds:
        BLUEPRINTS.load(blueprint)
        if for_widths(blueprint):
            raise ConfigError(
                f"blueprint {blueprint!r} is for the widths between layers, not for layer "
                f"{name!r}; widen that: esper.wrap(model, widen=[{name!r}], example=batch)"
            )
    if not seeds:
        raise ConfigError(f"layer {name!r} got no seeds; give at least one blueprint name")
    return tuple(map(canonical, seeds))


def _default_seeds(count: int, *, convolves: bool) -> tuple[str, ...]:
    family = _FAMILIES["conv" if convolves else "features"]
    return tuple(family[index % len(family)] for index in range(count))


def refit_default_seeds(layer: KasminaLayer, spec: LayerSpec) -> None:
    """Give a layer the default blueprints of the kind that was observed, if its own do not fit.

    Blueprints that the user chose stay, and so do those of a layer that has a kernel.
    """
    fit = fitting(spec)
    idle = all(state is SeedState.DORMANT for state in layer.seed_states) and not layer.fossils
    if layer.default_seeds and idle and not set(layer.seed_blueprints) & set(fit):
        names = _default_seeds(len(layer.seeds), convolves=spec.kind.startswith("conv"))
        for seed_idx, name in enumerate(names):
            layer.seed(seed_idx).blueprint = name


def _layouts(layout: Mapping[str, str], layers: Sequence[str]) -> dict[str, str]:
    for name in layout:
        if name not in layers:
            raise ConfigError(unknown_name("layer in layout", name, layers))
    return {name: check_layout(name, letters) for name, letters in layout.items()}


def _check_topology(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse a state dict whose topology cannot be rebuilt, before any of it is loaded."""
    plans = []
    for name, layer in seeded_modules(model).items():
        packed = state_dict.get(f"{prefix}{name}.{topology.KEY}" if name else prefix + topology.KEY)
        if packed is not None:
            plans.append((layer, layer.plan(packed)))
    for layer, plan in plans:
        layer.make_room(plan)


def check_topology(model: nn.Module) -> None:
    """Check from now on topologies in state dicts that are loaded, and mark folders as saved."""
    mark_folders(model, lambda module: isinstance(module, Seeded), WRAPPED)
    if not _checks(model):
        model.register_load_state_dict_pre_hook(_check_topology)  # type: ignore[no-untyped-call]


def _checks(model: nn.Module) -> list[int]:
    hooks: Mapping[int, Any] = model._load_state_dict_pre_hooks
    return [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _check_topology]


def forget_topology(model: nn.Module) -> None:
    """Undo `check_topology` of a model without wrapped layers."""
    forget_folders(model)
    for module in model.modules():
        for key in _checks(module):
            del module._load_state_dict_pre_hooks[key]
