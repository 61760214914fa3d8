"""DistributedDataParallel around a model that grows, rebuilt in place.

It reduces the gradients of the parameters that it was made over, and of no others: those added
later would get other gradients in each process, without an error.
"""

import gc
from collections.abc import Iterable
from typing import Any, final
from weakref import ref

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from esper.contracts.errors import ConfigError
from esper.execution.seed import Seed
from esper.execution.seeded import Seeded

_KEPT = frozenset(vars(nn.Module()))
"""Attributes of every module, as hooks and mode: they stay the wrapper's own."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in a ``DistributedDataParallel``, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def around(modules: Iterable[nn.Module]) -> list[DistributedDataParallel]:
    """Wrappers in this process whose model has one of these modules in it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []  # there is none without, and to look for them takes 50 ms
    wanted = {id(module) for module in modules}
    kinds = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
    return [ddp for ddp in kinds if any(id(m) in wanted for m in ddp.modules())]


def refuse_unknown(modules: Iterable[nn.Module]) -> None:
    """Refuse wrappers that could not be rebuilt.

    Raises:
        ConfigError: if one has a mixed precision of its own, or delays gradients.
    """
    for ddp in around(modules):
        if ddp.mixed_precision is not None or ddp._delay_all_reduce_params:
            raise ConfigError(
                "DistributedDataParallel(mixed_precision=...) and delayed gradients cannot be "
                "rebuilt when a model grows; use torch.autocast in the loop instead"
            )


@final
class Reduction:
    """Keeps the wrappers around a model reducing the gradients of all its parameters.

    Args:
        model: The model.
        sites: Its wrapped layers and widths.
    """

    def __init__(self, model: nn.Module, sites: Iterable[Seeded]) -> None:
        self.model = model
        self.sites = list(sites)
        self._known: tuple[ref[nn.Parameter], ...] = ()
        for ddp in around(self.sites):
            _spare_alphas(ddp)
        if any(site.is_grown for site in self.sites):
            self.fit()  # wrappers may have been made before kernels were loaded
        else:
            self._known = tuple(map(ref, self._parameters()))

    def fit(self) -> None:
        """Rebuild every wrapper in place, if parameters came or went; every process must call it.

        A wrapper stays the object that it is, with its hooks.
        """
        now, known = self._parameters(), [reference() for reference in self._known]
        if len(now) == len(known) and all(p is q for p, q in zip(now, known, strict=True)):
            return
        for ddp in around(self.sites):
            fresh = _like(ddp)
            for hook, state in ddp._comm_hooks:
                fresh.register_comm_hook(state, hook)
            vars(ddp).update({k: v for k, v in vars(fresh).items() if k not in _KEPT})
        self._known = tuple(map(ref, now))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]


def _spare_alphas(ddp: DistributedDataParallel) -> None:
    """Leave alphas out of the buffers that are broadcast before every forward pass.

    Every process computes the same, and a model without buffers of its own broadcasts none: a
    message for each batch would cost a small one a sixth of its time.
    """
    seeds = [name for name, one in ddp.module.named_modules() if isinstance(one, Seed)]
    spared = {f"{name}.alpha" for name in seeds} | set(ddp.parameters_to_ignore)
    ddp.module._ddp_params_and_buffers_to_ignore = spared
    ddp.parameters_to_ignore = spared
    ddp._assign_modules_buffers()  # type: ignore[no-untyped-call]


def _like(ddp: DistributedDataParallel) -> DistributedDataParallel:
    given: dict[str, Any] = {
        "device_ids": ddp.device_ids,
        "output_device": ddp.output_device,
        "dim": ddp.dim,
        "process_group": ddp.process_group,
        "find_unused_parameters": ddp.find_unused_parameters,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "static_graph": ddp.static_graph,
        "init_sync": False,  # buffers that the user keeps apart in each process stay so
    }
    if not getattr(ddp, "bucket_bytes_cap_default", True):
        given["bucket_cap_mb"] = ddp.bucket_bytes_cap / 2**20
    fresh = DistributedDataParallel(ddp.module, **given)
    # Set, not given: the argument's name differs among the versions of PyTorch.
    newer = "forward_sync_buffers" in vars(ddp)
    name = "forward_sync_buffers" if newer else "broadcast_buffers"
    setattr(fresh, name, getattr(ddp, name))
    return fresh
