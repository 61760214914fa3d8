"""KasminaWidth: seeds in the width between layers, whose kernels are more units.

While a kernel acts, the modules that grow with the units compute with its rows, channels and
columns behind their own. A kernel that is kept can be merged into them for good: the same tensors
are put together in the same way, so a merge changes no output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints.units import UnitsKernel
from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec, Piece
from esper.contracts.site import Kind, Site
from esper.execution import topology
from esper.execution.fast_paths import drop_compiled_graphs
from esper.execution.kernel import Join, Kernel, count_parameters
from esper.execution.seeded import Seeded
from esper.widths.found import Width
from esper.widths.hooks import Acting, Hooks
from esper.widths.members import counts, first_units, join, parts_of, place, tensor_of

CHILD = "width"
"""Name of the module inside the layer that gives the units."""


@final
class KasminaWidth(Seeded):
    """Seeds in one width of a model.

    It is a module inside the first layer that gives the units, so that it travels with it.

    Args:
        width: The width, as it was found.
        modules: Modules of the model by name.
        seeds: One blueprint name for each seed.

    Attributes:
        members: Modules that grow with the units, and how; they stay where they are in the model.
        units: Units that the host has now.
        born: Units that it had when it was wrapped.
    """

    kind: ClassVar[Kind] = "width"

    def __init__(
        self, width: Width, modules: Mapping[str, nn.Module], *, seeds: Sequence[str]
    ) -> None:
        super().__init__()
        # A tuple, because what is assigned as it is would become a submodule.
        self.members = tuple((member, modules[member.name]) for member in width.members)
        self.units = self.born = width.units
        self._merged = 0
        self._hooks = Hooks(self.members)
        self._plant(str(width.site), seeds, next(self.host_parameters()))
        self.training = self.producer.training
        self.seeds.train(self.training)

    # --- what the site says of itself -------------------------------------------------------------

    @property
    def producer(self) -> nn.Module:
        """The layer that gives the units, or the first one called."""
        return self.members[0][1]

    @property
    @override
    def host_type(self) -> str:
        return type(self.producer).__name__

    @override
    def host_parameters(self) -> Iterator[nn.Parameter]:
        found = (tensor_of(part.module, part.tensor) for part in parts_of(self.members))
        parameters = {id(p): p for p in found if isinstance(p, nn.Parameter)}
        yield from parameters.values()

    @property  # type: ignore[explicit-override]
    @override
    def spec(self) -> LayerSpec | None:
        """Specification of the width as it is now: others, which share its layers, may grow too."""
        return LayerSpec(
            kind="width",
            in_size=self.units,
            out_size=self.units,
            layer_type=self.host_type,
            pieces=tuple(
                Piece(part=part.key, tensor=part.tensor, shape=part.shape_of_one(), dim=part.dim)
                for part in parts_of(self.members)
            ),
        )

    @spec.setter
    def spec(self, spec: LayerSpec | None) -> None:
        """No-op: the modules tell."""

    @override
    def check(self, kernel: Kernel) -> None:
        pieces = self.spec.pieces if self.spec else ()
        module = kernel.module
        if isinstance(module, UnitsKernel):
            found = [tensor_of(module.get_submodule(p.part), p.tensor).shape for p in pieces]
            if found == [p.of(module.units) for p in pieces]:
                return
        raise KernelError(
            f"kernel {kernel.kernel_id!r} does not have the tensors of new units of {self.name!r}; "
            "build one with esper.blueprints.build('units', layer.spec, budget=..., seed=...)"
        )

    @override
    def can_learn(self, kernel: Kernel) -> bool:
        return True

    @override
    def plain_name(self, path: str) -> str:
        return str(Site(path.removesuffix(CHILD).rstrip("."), self.kind))

    @override
    def beside(self, parameter: nn.Parameter) -> nn.Parameter | None:
        for kernel in self._kernels():
            for part in parts_of(self.members):
                if tensor_of(kernel.get_submodule(part.key), part.tensor) is parameter:
                    return cast("nn.Parameter", tensor_of(part.module, part.tensor))
        return None

    @property
    @override
    def is_grown(self) -> bool:
        """True if any kernel has a part in the output, merged ones too."""
        return self._grown or self.units > self.born

    @property
    @override
    def grown_parameters(self) -> int:
        """Parameters that were merged, and those of all kernels."""
        return self._merged + sum(map(count_parameters, self._kernels()))

    @override
    def input_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return args[0] if args else next(iter(kwargs.values()), None)

    @override
    def register_forward_hook(self, hook: Callable[..., Any], **settings: Any) -> Any:
        """Hook on the layer that gives the units; it gets this module in that one's place."""
        return self.producer.register_forward_hook(lambda _, *rest: hook(self, *rest), **settings)

    # --- what it computes -------------------------------------------------------------------------

    @contextmanager
    def trying(self, kernel: UnitsKernel) -> Iterator[None]:
        """Shadow pass, under ``torch.no_grad``, with a kernel that is in no seed."""
        self._act(Acting(kernel, None))
        try:
            yield
        finally:
            self._act()

    @override
    def _act(self, tried: Acting | None = None) -> None:
        kernels = [Acting(cast("UnitsKernel", kernel), None) for kernel in self.fossils]
        blended = [Acting(_units(seed.as_kernel()), seed.alpha) for seed in self._blended]
        isolated = [Acting(_units(seed.as_kernel()), None) for seed in self._isolated]
        isolated += [] if tried is None else [tried]
        self._hooks.compute_with([*kernels, *blended, *isolated], isolated=bool(isolated))

    # --- units that become the host's -------------------------------------------------------------

    @override
    def joins(self, kernel: nn.Module) -> list[Join]:
        return [
            Join(
                host=cast("nn.Parameter", tensor_of(part.module, part.tensor)),
                piece=cast("nn.Parameter", tensor_of(kernel.get_submodule(part.key), part.tensor)),
                whole=partial(join, dim=part.dim, member=part.member),
            )
            for part in parts_of(self.members)
            if part.tensor in part.module._parameters
        ]

    @override
    def merge(self, kernel: nn.Module) -> None:
        index = list(self.fossils).index(kernel)
        before = sum(p.numel() for p in self.host_parameters())
        with torch.no_grad():
            for part in parts_of(self.members):
                host = tensor_of(part.module, part.tensor)
                piece = tensor_of(kernel.get_submodule(part.key), part.tensor)
                grown = partial(join, dim=part.dim, member=part.member)
                gradient = _grown_gradient(host, piece, grown)
                place(host, grown(host.data, piece.data.to(host.dtype)), gradient)
        self._count(_units_of(kernel))
        self._merged += sum(p.numel() for p in self.host_parameters()) - before
        self.fossils = nn.ModuleList(k for k in self.fossils if k is not kernel)
        del self._fossil_records[index]
        self._follow_up()
        drop_compiled_graphs()

    def resize(self, units: int) -> None:
        """Give the host so many units: the first ones it has, and zeros for those that come."""
        if units == self.units:
            return
        before = sum(p.numel() for p in self.host_parameters())
        with torch.no_grad():
            for part in parts_of(self.members):
                host = tensor_of(part.module, part.tensor)
                kept = min(units, self.units)
                whole = first_units(host.data, kept, part.dim, part.member)
                if units > kept:
                    shape = list(part.shape_of_one())
                    shape[part.dim] *= units - kept
                    whole = join(whole, whole.new_zeros(shape), part.dim, part.member)
                place(host, whole, None)
        self._count(units - self.units)
        self._merged += sum(p.numel() for p in self.host_parameters()) - before

    def _count(self, units: int) -> None:
        """Let the modules say that they have so many units more."""
        for module in {module: None for _, module in self.members}:
            for member, one in self.members:
                if one is module:
                    vars(module).update(counts(module, member, units))
        self.units += units

    # --- checkpoints ------------------------------------------------------------------------------

    @override
    def facts(self) -> dict[str, Any]:
        return {"units": self.units}

    @override
    def take_facts(self, facts: Mapping[str, Any]) -> None:
        self.resize(int(facts["units"]))

    @override
    def make_room(self, plan: topology.Plan) -> None:
        self._regrow(plan)

    @override
    def discard(self) -> None:
        self._hooks.compute_with([], isolated=False)
        self.resize(self.born)
        del self.producer._modules[CHILD]

    @override
    def settle(self) -> None:
        for seed in self._blended:
            blended = _units(seed.as_kernel())
            for part in parts_of(self.members):
                if part.member.role == "consumer":
                    tensor_of(blended.get_submodule(part.key), part.tensor).data.mul_(seed.alpha)
            self.fossils.append(blended)
            self._fossil_records.append({})
        for kernel in list(self.fossils):
            self.merge(kernel)
        self._hooks.compute_with([], isolated=False)
        del self.producer._modules[CHILD]


def _units(kernel: Kernel) -> UnitsKernel:
    return cast("UnitsKernel", kernel.module)


def _units_of(kernel: nn.Module) -> int:
    return cast("UnitsKernel", kernel).units


def _grown_gradient(host: Tensor, piece: Tensor, grown: Callable[..., Tensor]) -> Tensor | None:
    if host.grad is None and piece.grad is None:
        return None
    ours = torch.zeros_like(host) if host.grad is None else host.grad
    theirs = torch.zeros_like(piece) if piece.grad is None else piece.grad
    return grown(ours, theirs)
