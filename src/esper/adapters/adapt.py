"""Adapt a pretrained, frozen model: kernels wherever the gradient asks for them."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from numbers import Integral, Real
from re import Pattern
from typing import Any

from torch import nn

from esper.adapters.host import freeze, head_of, plain_modules
from esper.adapters.switching import DEFAULT, begin_adapter, drop_adapter
from esper.contracts.errors import ConfigError, EsperError, unknown_name
from esper.contracts.patterns import matches
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.passes.isolation import LossFn
from esper.execution.surgery import kasmina_layers, unwrap, wrap
from esper.execution.training.given import several
from esper.execution.training.schedulers import core
from esper.services.tamiyo.settings import config_from
from esper.services.tamiyo.tamiyo import Tamiyo

CEILING = 8.0
"""Parameters at most, in shares of LoRA r = 1, where the size is to be found."""

Layers = str | Pattern[str] | Sequence[str | Pattern[str]]

_PLACED = {"kernel_share": 1.0, "judge": "never"}
_FOUND = {"kernel_share": 1.0, "judge": "together", "blend_epochs": 5, "keep_stderrs": 0.0}


def adapt(  # noqa: PLR0913 (the public contract; all but the model is keyword-only or has a default)
    model: nn.Module,
    layers: Layers = "all-linear",
    *,
    optimizer: Any,
    loss_fn: LossFn,
    holdout: Iterable[Any],
    budget: float | None = None,
    head: str | Sequence[str] | None = None,
    seeds: Sequence[str] = ("lora",),
    every: int | None = None,
    name: str = DEFAULT,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Tamiyo:
    """Freeze a pretrained model but for its head, and have kernels grow beside its layers.

    ``every`` batches after the start a gradient pass says which layers get kernels, and of which
    rank; all begin at once and train with the head. Call ``on_batch_end(batch)`` after each step of
    the optimizer, and ``finish()`` at the end; epochs need no call. Without a ``budget`` kernels of
    up to eight times LoRA r = 1 begin, are judged beside each other on the holdout five rounds
    later, and those that are worth nothing are culled. How good that size is was not measured.

    Args:
        model: The host, in place; no weight of it changes but the head's.
        layers: ``"all-linear"`` for every ``nn.Linear`` outside the head, or names, patterns with
            ``*`` and compiled regular expressions.
        optimizer: Made over the head's parameters, or over ``[{"params": []}]`` without a head.
        loss_fn: As of `esper.Tamiyo`: one loss per example.
        holdout: As of `esper.Tamiyo`; small batches make the passes before the start cheap.
        budget: A share of the parameters of LoRA of rank 1 over the same layers, as ``0.33``; an
            integer counts parameters; ``None`` finds the size, up to ``8.0``.
        head: Names or patterns of the modules that are trained along; by default what the optimizer
            holds.
        seeds: Blueprints of each layer's seeds, as ``["lora", "bias", "scale", "bottleneck"]``: the
            gradient pass says which layer gets which, on one scale of gain per parameter.
        every: Batches of a round; 5 with a budget, 10 without.
        name: Name of the adapter; another beside it needs another name.
        config: Sections of settings, over those of an adaptation.
        options: More of `esper.Tamiyo`, as ``scheduler``, ``store``, ``seed``.

    Returns:
        The engine of the adaptation.

    Raises:
        ConfigError: if a layer or the head is not found, a layer is not linear, the budget is
            below one rank, or an argument of `esper.Tamiyo` is wrong. The host is left as it was.
        LifecycleError: in a block of `esper.disabled`.
        KernelError: if the model fails on a batch of the holdout.
    """
    optimizers = [core(one) for one in several(optimizer)]
    kept = head_of(model, head, optimizers)
    chosen = _chosen(model, layers, kept, linear=tuple(seeds) == ("lora",))
    settings = _settings(chosen, seeds, budget, every, config or {})
    flags = {p: p.requires_grad for p in model.parameters()}
    wrapped = set(kasmina_layers(model).values())
    freeze(model, kept)
    there = {layer.name for layer in wrapped}
    try:
        new = [layer for layer in chosen if layer not in there]
        if new:
            wrap(model, new, seeds)
        begin_adapter(model, name, kept)
        try:
            return Tamiyo(
                model, optimizer, loss_fn=loss_fn, holdout=holdout, config=settings, **options
            )
        except EsperError:
            drop_adapter(model, name)
            raise
    except EsperError:
        if not wrapped:
            unwrap(model, discard_grown=True)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        raise


def _settings(
    chosen: Mapping[str, nn.Module],
    seeds: Sequence[str],
    budget: float | None,
    every: int | None,
    config: Mapping[str, Any],
) -> Any:
    """Settings of an adaptation.

    Raises:
        ConfigError: if the budget is below one rank of the smallest layer, or a setting is wrong.
    """
    sizes = [sum(_shape(layer)) for layer in chosen.values()]
    of_low_rank = set(seeds) <= {"lora", "lowrank"}
    sized = next((seed for seed in seeds if "@" in str(seed)), None)
    if sized is not None:
        raise ConfigError(f"seed {sized!r}: the gradient pass sizes kernels; leave the share out")
    share = CEILING if budget is None else _budget(budget)
    parameters = int(share if isinstance(share, Integral) else share * sum(sizes))
    if of_low_rank and parameters < min(sizes):
        raise ConfigError(
            f"budget {share} is {parameters} parameters, and one rank of the smallest layer has "
            f"{min(sizes)}; give {min(sizes) / sum(sizes) + 0.005:.2f} or more, a share of LoRA "
            f"r = 1, which has {sum(sizes)} here"
        )
    growth = {
        "budget": parameters,
        "every": every or (10 if budget is None else 5),
        "starts": len(chosen) * len(seeds),
        "max_active": 2 * len(chosen) * len(seeds),
        "train_epochs": 0,
        "ramp": 0.0,
        "warmup_epochs": 1,
        "measure_on": False,
        **(_FOUND if budget is None else _PLACED),
    }
    constraints = {"min_dormant_epochs": 0, "max_concurrent_seeds": max(1, len(seeds))}
    own = {
        "policy": "gradient",
        "seed_selection": {"audition": "never", "constraints": constraints},
        **{key: value for key, value in config.items() if key != "growth"},
        "growth": growth | dict(config.get("growth", {})),
    }
    return config_from(own)


def _budget(budget: Any) -> Any:
    if isinstance(budget, bool) or not (isinstance(budget, Real) and isfinite(budget)):
        raise ConfigError(
            f"budget {budget!r} must be a share of the parameters of LoRA r = 1, as 0.33, or an "
            "integer, which counts parameters; None finds the size"
        )
    return budget


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Features that a layer reads and writes, by its weight."""
    host = layer.host if isinstance(layer, KasminaLayer) else layer
    weight = next((p for p in host.parameters() if p.ndim >= 2), None)
    return (1, 1) if weight is None else (weight.shape[0], weight[0].numel())


def _chosen(
    model: nn.Module, layers: Layers, head: Sequence[str], *, linear: bool
) -> dict[str, nn.Module]:
    """Layers that are meant, by plain name.

    Raises:
        ConfigError: if one is not there, or is not linear though it must be.
    """
    texts, found = _texts(layers), dict[str, nn.Module]()
    for name, module in plain_modules(model):
        found.setdefault(name, module)
    inner = {n: found.pop(n) for n in _parts_of_peft(found)}
    heads = {name.rpartition(".")[0] for name in head}
    able = {
        n: m for n, m in found.items() if _is_linear(m) and n not in heads and _called(found, n)
    }
    if layers == "all-linear":
        if not able:
            known = ", ".join(sorted(heads)[:3]) + (", ..." if len(heads) > 3 else "")
            others = " and the adapters of peft" if inner else ""
            raise ConfigError(
                f"the model has no nn.Linear outside its head{others}; name the layers. Its head "
                f"is what the optimizer holds, or head= names: {known or 'nothing'}. An optimizer "
                "over all parameters makes all of them the head; build it over those of the head "
                "alone"
            )
        return able
    chosen: dict[str, nn.Module] = {}
    for text in texts:
        if text in inner:
            raise ConfigError(
                f"layer {text!r} is a part of an adapter of peft, which calls it in its own way; "
                "merge that one by model.merge_and_unload() first, or give another layer"
            )
        if isinstance(text, Pattern):
            fitting = [name for name in found if text.fullmatch(name)]
        else:
            fitting = [name for name in found if matches(text, name)]
        pattern = isinstance(text, Pattern) or "*" in text
        if not fitting and not pattern:
            raise ConfigError(unknown_name("layer", str(text), list(found)))
        if not fitting:
            raise ConfigError(_no_match(text, list(able)))
        other = next((name for name in fitting if name not in able), None)
        if linear and other is not None and not (pattern and any(n in able for n in fitting)):
            why = "in the head" if other in heads else f"a {type(found[other]).__name__}"
            raise ConfigError(
                f"layer {other!r} is {why}, and kernels of low rank go beside an nn.Linear outside "
                "of it; give another, or other seeds"
            )
        chosen |= {name: found[name] for name in fitting if name in able or not linear}
    return chosen


def _texts(layers: Any) -> list[str | Pattern[str]]:
    """Names and patterns of layers, as they were given.

    Raises:
        ConfigError: if there is none, or one is neither.
    """
    alone = isinstance(layers, str | Pattern)
    texts = [layers] if alone else list(layers) if isinstance(layers, Iterable) else []
    if not texts or not all(isinstance(text, str | Pattern) for text in texts):
        raise ConfigError(
            f"layers is {layers!r}; give 'all-linear', or names, patterns with '*' and compiled "
            "regular expressions"
        )
    return texts


def _no_match(text: str | Pattern[str], names: Sequence[str]) -> str:
    shown = text.pattern if isinstance(text, Pattern) else text
    near = get_close_matches(shown, names, n=3, cutoff=0.3) or list(names[:3])
    return f"layers has {shown!r}, which matches no layer; nearest: {', '.join(near)}"


def _is_linear(module: nn.Module) -> bool:
    host = module.host if isinstance(module, KasminaLayer) else module
    return isinstance(host, nn.Linear)


def _called(found: Mapping[str, nn.Module], name: str) -> bool:
    """False of the projection that nn.MultiheadAttention reads without calling it."""
    return not isinstance(found.get(name.rpartition(".")[0]), nn.MultiheadAttention)


def _parts_of_peft(found: Mapping[str, nn.Module]) -> list[str]:
    """Layers inside those of peft, which all have this attribute."""
    outer = [n for n, module in found.items() if hasattr(type(module), "adapter_layer_names")]
    return [n for n in found if any(n.startswith(f"{name}.") for name in outer)]
