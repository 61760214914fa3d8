"""KasminaWidth: seeds in the width between layers, whose kernels are more units.

While a kernel acts, the modules that grow with the units compute with its rows, channels and
columns behind their own. A kernel that is kept can be merged into them for good: the same tensors
are put together in the same way, so a merge changes no output.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints.units import UnitsKernel
from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec, Piece
from esper.contracts.site import Kind, Site
from esper.execution import topology
from esper.execution.copies.followers import followers
from esper.execution.fast_paths import drop_compiled_graphs
from esper.execution.kernel import Join, Kernel, count_parameters
from esper.execution.seeded import Seeded
from esper.widths.found import Width
from esper.widths.hooks import Acting, Hooks, Missing
from esper.widths.members import Member, counts, first_units, join, parts_of, place, tensor_of

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
        units: Units that the host has now.
        born: Units that it had when it was wrapped.
        heads: True if they are heads of attention.
        crossings: Layers between this width and another one, or this one itself.
    """

    kind: ClassVar[Kind] = "width"

    def __init__(
        self, width: Width, modules: Mapping[str, nn.Module], *, seeds: Sequence[str]
    ) -> None:
        super().__init__()
        self.units = self.born = width.units
        self.heads = width.heads
        self.crossings: tuple[Crossing, ...] = ()
        self._merged = 0
        members = [(member, modules[member.name]) for member in width.members]
        self._hooks = Hooks(members, _cut(width, modules))
        self._plant(str(width.site), seeds, next(self.host_parameters()))
        self.training = self.producer.training
        self.seeds.train(self.training)

    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        if self._hooks.copied_part(memo) is not None:
            memo[id(self.crossings)] = ()  # they would have all of the other widths copied
        return super().__deepcopy__(memo)

    # --- what the site says of itself -------------------------------------------------------------

    @property
    def members(self) -> tuple[tuple[Member, nn.Module], ...]:
        """Modules that grow with the units, and how; they stay where they are in the model."""
        return self._hooks.members

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
        none, one, two = (sum(c.size(self, n) for c in self.crossings) for n in range(3))
        return LayerSpec(
            crossed=2 * one - (3 * none + two) // 2,
            corner=(two - 2 * one + none) // 2,
            kind="heads" if self.heads else "width",
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
        blueprint = "heads" if self.heads else "units"
        raise KernelError(
            f"kernel {kernel.kernel_id!r} does not have the tensors of new units of {self.name!r}; "
            f"build one with esper.blueprints.build({blueprint!r}, layer.spec, budget=..., "
            "seed=...)"
        )

    @override
    def can_learn(self, kernel: Kernel) -> bool:
        return True

    @override
    def plain_name(self, path: str) -> str:
        return str(Site(path.removesuffix(CHILD).rstrip("."), self.kind))

    @override
    def ends_in(self, module: nn.Module) -> bool:
        inside = set(module.modules())
        return 0 < sum(one in inside for _, one in self.members) < len(self.members)

    @override
    def misfit(self, model: nn.Module) -> str:
        there = set(model.modules())
        missing = next((m.name for m, one in self.members if isinstance(one, Missing)), "")
        if missing:
            return (
                f"{self.name!r} cannot grow: it is in a copy of a part of its model, and "
                f"{missing!r}, which grows with it, is in the rest; copy the whole model"
            )
        for part in parts_of(self.members):
            expected = self.units * part.member.places
            found = tensor_of(part.module, part.tensor).shape[part.dim]
            if part.module not in there or found != expected:
                was = "replaced" if part.module not in there else f"given {found} of {expected}"
                return (
                    f"{self.name!r} cannot grow: since it was wrapped, {part.member.name!r} was "
                    f"{was}{'' if was == 'replaced' else ' places'}; wrap the changed model anew, "
                    "from esper.unwrap(model, discard_grown=True)"
                )
        return ""

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
        """Parameters that were merged, those of kernels, and what a merge of these would add."""
        held = self._merged + sum(map(count_parameters, self._kernels()))
        return held + sum(one.size() for one in self.crossings if one.reader is self)

    @property
    def units_under_way(self) -> int:
        """Units of kernels that are not a part of the host."""
        return sum(map(_units_of, self._kernels()))

    @property
    @override
    def merged_parameters(self) -> int:
        return self._merged

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

    @override
    def learn_statistics(self) -> None:
        self._hooks.learn_statistics()

    # --- units that become the host's -------------------------------------------------------------

    @override
    def joins(self, kernel: nn.Module) -> list[Join]:
        return [
            Join(
                host=tensor_of(part.module, part.tensor),
                piece=tensor_of(kernel.get_submodule(part.key), part.tensor),
                whole=partial(join, dim=part.dim, member=part.member),
            )
            for part in parts_of(self.members)
        ]

    @override
    def merge(self, kernel: nn.Module) -> None:
        index = list(self.fossils).index(kernel)
        for twin in followers(self):  # its kernel has values of its own
            absorbed = zip(twin.fossils, twin._fossil_records, strict=True)
            for same in [k for k, record in absorbed if record == self._fossil_records[index]]:
                twin.merge(same)
        before = sum(p.numel() for p in self.host_parameters())
        with torch.no_grad():
            for part in self.joins(kernel):
                value = part.whole(part.host.data, part.piece.data.to(part.host.dtype))
                place(part.host, value, _grown_gradient(part))
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


def _cut(width: Width, modules: Mapping[str, nn.Module]) -> list[nn.Module]:
    """Modules that have some of a width's members inside, and not all."""
    paths = []
    for member in width.members:
        steps = member.name.split(".")
        paths.append({".".join(steps[: i + 1]) for i in range(len(steps))})
    return [modules[path] for path in set().union(*paths) - paths[0].intersection(*paths)]


def _units(kernel: Kernel) -> UnitsKernel:
    return cast("UnitsKernel", kernel.module)


def _units_of(kernel: nn.Module) -> int:
    return cast("UnitsKernel", kernel).units


def _grown_gradient(part: Join) -> Tensor | None:
    if part.host.grad is None and part.piece.grad is None:
        return None
    both = (part.host, part.piece)
    return part.whole(*(torch.zeros_like(t) if t.grad is None else t.grad for t in both))


@final
@dataclass(frozen=True, slots=True)
class Crossing:
    """A layer that reads one width and gives the units of another, or of the same.

    Rows of kernels of one and columns of kernels of the other, once they are merged, cross: there
    is more in the layer then than the kernels had.
    """

    layer: nn.Module
    giver: KasminaWidth
    reader: KasminaWidth

    def size(self, growing: KasminaWidth | None = None, units: int = 0) -> int:
        """Parameters at the crossing of all kernels, were one of the widths to get more units."""
        weight, total, apart = tensor_of(self.layer, "weight"), 1, 0
        across = [(self.giver, "producer"), (self.reader, "consumer")]
        for width, role in across:
            part = next(
                p
                for p in parts_of(width.members)
                if p.module is self.layer and p.member.role == role and p.tensor == "weight"
            )
            kernels = [_units_of(kernel) for kernel in width._kernels()]
            more = units if width is growing else 0
            held = [tensor_of(k.get_submodule(part.key), "weight") for k in width._kernels()]
            apart += sum(tensor.numel() for tensor in held) + more * prod(part.shape_of_one())
            total *= weight.shape[part.dim] + (sum(kernels) + more) * part.member.places
        across_units = weight.numel() // prod(weight.shape[:2])
        return total * across_units - weight.numel() - apart


def find_crossings(widths: Iterable[KasminaWidth]) -> None:
    """Let widths know of the layers between them."""
    found = list(widths)
    givers = {m: w for w in found for member, m in w.members if member.role == "producer"}
    for reader in found:
        reader.crossings = ()
    for reader in found:
        for member, module in reader.members:
            if member.role == "consumer" and module in givers:
                crossing = Crossing(module, givers[module], reader)
                for width in {id(w): w for w in (reader, givers[module])}.values():
                    width.crossings += (crossing,)
