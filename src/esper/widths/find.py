"""Find the widths of a model that can grow, and prove each."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from esper.contracts.errors import ConfigError
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import FAULTS
from esper.execution.passes.isolation import LossFn
from esper.execution.surgery import kasmina_layers, refuse_unready, seeded_modules
from esper.widths.example import Example
from esper.widths.found import Sites, Width
from esper.widths.groups import Group
from esper.widths.kasmina_width import KasminaWidth
from esper.widths.members import Member, cost, growing, is_layer, tensor_of
from esper.widths.prove import prove
from esper.widths.trace import Trace


def sites(model: nn.Module, batch: Any, loss_fn: LossFn | None = None) -> Sites:
    """Find the widths between the layers of a model: where units can be added, and where not.

    The model runs on the side a few times, and is as it was afterwards. Every width that is not
    refused is proved: with one more unit that nothing reads, the outputs stay equal to rounding;
    where it is read, they change, and its weights get a gradient.

    Args:
        model: Any module; wrapped layers are followed.
        batch: As ``loss_fn`` takes it; without ``loss_fn``, what the model is called with: a
            tensor, a tuple of positional arguments, or a dictionary of arguments by name.
        loss_fn: ``loss_fn(model, batch)`` gives losses, as for `Tamiyo`. What it reads of the
            model's outputs cannot grow; without it, nothing that the model returns can.

    Raises:
        ConfigError: if the model does not run on the batch, the batch is empty or not finite, or a
            layer is not initialised.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(sites(model, torch.ones(3, 4)))
        site  units    cost  grows with
        0         8       7  2
        2         2       -  no: the model returns it
        1 of 2 widths can grow
    """
    model = getattr(model, "_orig_mod", model)
    refuse_unready(model, "esper.sites")
    names = names_of(model)
    example = Example(model, batch, loss_fn)
    trace = Trace(names, kasmina_layers(model).values())
    for training in (False, True):
        _watch(example, trace, training=training)
    _refuse(model, names, trace)
    widths = _collect(names, trace)
    open_ones = [width for width in widths if not width.refused]
    faults = prove(example, names, open_ones, eps=trace.eps)
    judged = (replace(w, refused=w.refused or faults.get(w.name, "")) for w in widths)
    return Sites(tuple(judged))


def names_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by the names that the user knows; a wrapped layer's host stands for the layer."""
    names: dict[str, nn.Module] = {}
    hosts: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, KasminaLayer):
            hosts.add(f"{path}.host".lstrip("."))
        parts = path.split(".")
        shown = (part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in hosts)
        names[".".join(shown)] = module
    return names


def _watch(example: Example, trace: Trace, *, training: bool) -> None:
    returned = example.loss_fn is None
    try:
        with torch.no_grad():
            outputs = example.run(trace.watching(), training=training)
    except FAULTS as error:
        raise ConfigError(
            f"{'model(batch)' if returned else 'loss_fn(model, batch)'} fails on the example in "
            f"{'training' if training else 'evaluation'} mode: {type(error).__name__}: {error}. "
            "Give a batch, and if need be a loss_fn, that it runs with"
        ) from error
    if fault := example.fault(outputs):
        raise ConfigError(
            f"the example {fault}, so no width can be proved on it; give a batch of training data"
        )
    trace.refuse_tensors(
        outputs, "the model returns it" if returned else "the loss has a value for each unit"
    )


def _refuse(model: nn.Module, names: Mapping[str, nn.Module], trace: Trace) -> None:
    """Refuse what a pass does not show: weights that others read, and kernels."""
    _refuse_tied(names, trace)
    for site in seeded_modules(model).values():
        why = f"a kernel of {site.name!r} has a part in it"
        if isinstance(site, KasminaWidth) and site.contributions():
            trace.refuse(site.producer, why)
        for module in (*site.fossils.modules(), *site.seeds.modules()):
            trace.refuse(module, why)
    for module, why in trace.read_outside.items():
        trace.refuse(module, why)
    _refuse_unreached(names, trace)


def _refuse_unreached(names: Mapping[str, nn.Module], trace: Trace) -> None:
    """Refuse units that a layer may read which the example did not reach, as one of an expert."""
    reached = {*trace.read_outside, *(module for held in trace.axes.values() for module in held)}
    for name, module in names.items():
        if not is_layer(module) or module in reached:
            continue
        ((tensor, dim), *_) = growing(module, "consumer")
        weight = tensor_of(module, tensor)
        if not weight.requires_grad:  # as of a target network, which grows as a copy
            continue
        for axis in trace.axes["producer"].values():
            if axis is not None and axis.resolved().group.units == weight.shape[dim]:
                axis.refuse(f"{name!r}, which the example does not reach, may read it")


def _refuse_tied(names: Mapping[str, nn.Module], trace: Trace) -> None:
    owners: dict[int, dict[str, nn.Module]] = {}
    for name, module in names.items():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.numel():
                owners.setdefault(parameter.data_ptr(), {})[name] = module
    for tied in owners.values():
        for name in tied if len(tied) > 1 else ():
            other = next(other for other in tied if other != name)
            trace.refuse(tied[name], f"the weights of {name!r} are tied to {other!r}")


def _collect(names: Mapping[str, nn.Module], trace: Trace) -> list[Width]:
    known = {module: name for name, module in names.items()}
    members: dict[Group, list[Member]] = {}
    for role, held in trace.axes.items():
        for module, axis in held.items():
            if axis is not None:
                whole = axis.resolved()
                member = Member(known[module], role, whole.outer, whole.inner)
                members.setdefault(whole.group, []).append(member)
    widths = []
    for group, found in members.items():
        read = any(member.role == "consumer" for member in found)
        refused = group.refused or ("" if read else "no layer reads it")
        per_unit = cost(names, found)
        widths.append(Width(found[0].name, group.units, per_unit, tuple(found), refused))
    return widths
