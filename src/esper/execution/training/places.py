"""Places: the parameter groups of a run, and which of them a kernel's parameters join."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from torch import nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.execution.seeded import Seeded
from esper.execution.training import optimizers
from esper.execution.training.optimizer_trial import objection


class Place(NamedTuple):
    """A parameter group: the index of its optimizer, and its own in that."""

    optimizer: int
    group: int


@final
class Places:
    """Finds the group for a kernel's parameters.

    Args:
        model: The wrapped model.
        optimizers: Those of its run; one may be exchanged for another, and then `forget`.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.model = model
        self.optimizers = optimizers
        self._objections: dict[tuple[Place, int], str] = {}

    def forget(self) -> None:
        """Try the optimizers anew: one was exchanged."""
        self._objections.clear()

    def home(self, layer: Seeded, parameter: nn.Parameter) -> Place:
        """Group for a parameter of a kernel: that of the host's parameter which it extends, if any.

        Raises:
            ConfigError: if no optimizer can train it.
        """
        extended = layer.beside(parameter)
        place = None if extended is None else self.held().get(id(extended))
        if place is not None and not self._objection(place, parameter.ndim, layer):
            return place
        return self.place(layer.name, layer, parameter.ndim)

    def place(self, name: str, layer: Seeded, ndim: int) -> Place:
        """Group for parameters of a kernel that have so many axes.

        Raises:
            ConfigError: if no optimizer can train them.
        """
        candidates = self._candidates(layer, ndim)
        for place in candidates:
            if not self._objection(place, ndim, layer):
                return place
        first = candidates[0]
        kind = type(self.optimizers[first.optimizer]).__name__
        raise ConfigError(
            f"layer {name!r}: {kind} cannot train a kernel's parameters of {ndim} "
            f"{'axis' if ndim == 1 else 'axes'}, which join it when the kernel is blended in: "
            f"{self._objection(first, ndim, layer)}. A seed_optimizer alone does not help; train "
            "the model with AdamW or SGD, or pass such an optimizer too: "
            "Tamiyo(model, [optimizer, other], ...)"
        )

    def _candidates(self, layer: Seeded, ndim: int) -> list[Place]:
        """Groups in order of preference: of the host, of its optimizer, of a neighbour, any."""
        held = self.held()
        own = [held[id(p)] for p in layer.host_parameters() if id(p) in held]
        alike = [
            held[id(p)]
            for p in layer.host_parameters()
            if id(p) in held and (p.ndim > 1) == (ndim > 1)
        ]
        near = own or self._neighbours(layer, held)
        home = near[0] if near else Place(0, 0)
        everywhere = [
            Place(i, j)
            for i, one in enumerate(self.optimizers)
            for j in range(len(one.param_groups))
        ]
        role = [place for place in everywhere if self._is_for(place, ndim)]
        beside = [place for place in role if self._rate(place) == self._rate(home)]
        same = [place for place in beside if place.optimizer == home.optimizer]
        return list(dict.fromkeys([*alike, *same, home, *role, *everywhere]))

    def _neighbours(self, layer: Seeded, held: Mapping[int, Place]) -> list[Place]:
        """Groups of the parameters of the model, the nearest in order of definition first."""
        order: list[nn.Parameter] = []
        here = 0
        for module in self.model.modules():
            if module is layer:
                here = len(order)
            order += module.parameters(recurse=False)
        found = [(abs(i - here), held[id(p)]) for i, p in enumerate(order) if id(p) in held]
        return [place for _, place in sorted(found)]

    def held(self) -> dict[int, Place]:
        """Place of every parameter that an optimizer holds, by identity."""
        return {
            id(parameter): Place(i, j)
            for i, optimizer in reversed(list(enumerate(self.optimizers)))
            for j, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }

    def _group(self, place: Place) -> Mapping[str, Any]:
        group: Mapping[str, Any] = self.optimizers[place.optimizer].param_groups[place.group]
        return group

    def anchor(self, place: Place) -> list[nn.Parameter]:
        """A parameter that is in a group, in a list."""
        return list(self._group(place)["params"][:1])

    def _rate(self, place: Place) -> float:
        return float(self._group(place).get("lr") or 0.0)

    def _is_for(self, place: Place, ndim: int) -> bool:
        """True if a group holds parameters of this kind alone, as biases without decay."""
        held = self._group(place)["params"]
        return bool(held) and all((p.ndim > 1) == (ndim > 1) for p in held)

    def like(self, layer: Seeded) -> nn.Parameter:
        """A parameter of the device and type of a layer's kernels."""
        found = next((p for p in layer.host_parameters() if p.is_floating_point()), None)
        return nn.Parameter(layer.seed(0).alpha) if found is None else found

    def _objection(self, place: Place, ndim: int, layer: Seeded) -> str:
        """Why parameters of so many axes cannot join a group; empty if they can."""
        if (place, ndim) not in self._objections:
            self._objections[place, ndim] = self._tried(place, ndim, layer)
        return self._objections[place, ndim]

    def _tried(self, place: Place, ndim: int, layer: Seeded) -> str:
        user, anchor = self.optimizers[place.optimizer], self.anchor(place)
        like = self.like(layer).detach()
        try:
            # One that cannot be made again at all may still train kernels: seed_optimizer makes
            # the seeds', and without it their trial says so.
            optimizers.like(user, [nn.Parameter(like.new_zeros((2, 2)))], beside=anchor)
        except ConfigError:
            return ""
        dummy = nn.Parameter(like.new_zeros((2,) * ndim))
        try:
            clone = optimizers.like(user, [dummy], beside=anchor)
        except ConfigError as error:
            return str(error.__cause__)
        return objection(clone, [dummy])
