"""Host of an adapter: its parameters under their plain names, its head, and its fingerprint."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.patterns import matches
from esper.execution.seeded import Seeded
from esper.execution.surgery import plain_name, seeded_modules
from esper.widths.host import host_parameters


def named_host(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a model without its kernels, under the names that they had before wrapping."""
    host = {id(parameter) for parameter in host_parameters(model)}
    return {
        plain: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in host
        for plain in [_plain(model, name)]
    }


def _plain(model: nn.Module, name: str) -> str:
    path, _, own = name.rpartition(".")
    module = plain_name(model, path) if path else ""
    return f"{module}.{own}" if module else own


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the host that are trained along with the kernels: those of its head."""
    return {name: p for name, p in named_host(model).items() if p.requires_grad}


def named_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Buffers of the host that a state dict has, as the statistics of a batch norm, by plain name.

    They move while the host is in training mode, though its parameters are frozen.
    """
    return {
        f"{path}.{own}" if path else own: buffer
        for path, module in plain_modules(model)
        if not isinstance(module, Seeded)  # its own
        for own, buffer in module._buffers.items()
        if buffer is not None and own not in module._non_persistent_buffers_set
    }


def named_values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and statistics of the host, under the names that they had before wrapping."""
    return {**named_statistics(model), **named_host(model)}


def freeze(model: nn.Module, head: Collection[str]) -> None:
    """Let the parameters of a head be trained, and no other of the host."""
    for name, parameter in named_host(model).items():
        parameter.requires_grad_(name in head)


def fingerprint(model: nn.Module, head: Iterable[str]) -> str:
    """SHA-256 over names, shapes, types and values of the host's parameters, those of a head aside.

    Values count as float32, so that it is the same on every device.
    """
    left_out, digest = set(head), sha256()
    for name, parameter in sorted(named_host(model).items()):
        if name not in left_out:
            values = parameter.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def head_of(
    model: nn.Module, head: str | Sequence[str] | None, optimizers: Sequence[torch.optim.Optimizer]
) -> list[str]:
    """Plain names of the parameters of the head: of the modules named, or those that are trained.

    Args:
        model: The model, wrapped or not.
        head: Names or patterns of modules; ``None`` for what the optimizers hold.
        optimizers: Those that were made for the adaptation.

    Raises:
        ConfigError: if no module is meant, or an optimizer holds parameters of another.
    """
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    named = named_host(model)
    trained = [name for name, parameter in named.items() if id(parameter) in held]
    if head is None:
        return trained
    wanted = [head] if isinstance(head, str) else list(head)
    modules = [name for name, _ in plain_modules(model) if name]
    found = [name for name in modules if any(matches(text, name) for text in wanted)]
    for text in wanted:
        if not any(matches(text, name) for name in found):
            raise ConfigError(unknown_name("head", text, modules))
    inside = [n for n in named if any(n.startswith(f"{module}.") for module in found)]
    stray = next((name for name in trained if name not in inside), "")
    if stray:
        raise ConfigError(
            f"the optimizer holds {stray!r}, which is not in the head {wanted}, and the host stays "
            "as it is; give the optimizer the parameters of the head alone"
        )
    missing = next((name for name in inside if name not in trained), "")
    if missing:
        raise ConfigError(
            f"the optimizer does not hold {missing!r} of the head; make it over the parameters of "
            "the head, before esper.adapt"
        )
    return inside


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules of a model, wrapped or not, under their plain names; none of a kernel's."""
    sites = seeded_modules(model).values()
    hidden = {id(m) for site in sites for p in (site.seeds, site.fossils) for m in p.modules()}
    for name, module in model.named_modules():
        if id(module) not in hidden:
            yield (plain_name(model, name) if name else ""), module


def copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, without gradients."""
    return {name: value.detach().clone() for name, value in values.items()}
