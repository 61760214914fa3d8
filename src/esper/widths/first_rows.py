"""First rows of new units, chosen by what the data and the loss say of them.

A unit's columns are zero, so it changes nothing; its rows decide what it sees, and so what its
columns can learn. Three ways: thresholds at quantiles of the data; the best of many random
candidates; copies of the units that matter most.

Source:
    Evci et al. (2022), GradMax, section 3.1 (new rows by the gradient of their columns), here by
    choice among candidates; Maile et al. (2022), When, where, and how to add new neurons to ANNs,
    section 3.2 (orthogonal to what the units there are do already); Chen, Goodfellow & Shlens
    (2016), Net2Net, section 3 (copies).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.blueprints import BLUEPRINTS
from esper.blueprints.units import Units, UnitsKernel
from esper.execution.kernel import Recipe
from esper.execution.passes.isolation import LossFn, example_losses, gradients_of
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import freeze_statistics, side_effect_free, training_like_mode
from esper.widths.kasmina_width import KasminaWidth
from esper.widths.members import (
    Member,
    first_units,
    growing,
    last_units,
    parts_of,
    tensor_of,
    unit_axis,
)
from esper.widths.noise import normal, source, uniform
from esper.widths.widened import spread

_CANDIDATES = 24
"""Candidates for each unit that is selected."""
_BATCHES = 4
_SAMPLES = 4096
"""Values of each unit, at most, from which similarity is told."""
_APART = 0.1
"""Noise on copied rows, relative to them: equal copies would stay equal."""
_QUANTILES = (0.1, 0.9)
"""Between these a unit's threshold is drawn, among its own values before activation."""


def choose_rows(
    width: Seeded, seed_idx: int, model: nn.Module, loss_fn: LossFn, batches: Sequence[Any]
) -> None:
    """Choose the rows of a kernel that has not trained yet, as its blueprint wants.

    Args:
        width: The site of a germinated kernel; nothing is done beside a layer.
        seed_idx: Its seed.
        model: The model.
        loss_fn: Per-example losses.
        batches: Recent training batches; the last few are used.
    """
    kernel = width.seed(seed_idx).as_kernel()
    blueprint = BLUEPRINTS.create(kernel.blueprint) if kernel.blueprint else None
    if not isinstance(width, KasminaWidth) or not isinstance(blueprint, Units) or not batches:
        return
    units = cast("UnitsKernel", kernel.module)
    chooser = _Chooser(width, model, loss_fn, batches[-_BATCHES:], cast("Recipe", kernel.recipe))
    with torch.inference_mode(False):
        if blueprint.start == "split":
            chooser.split(units)
        elif blueprint.start == "size":
            chooser.resize(units)
        else:
            chooser.threshold(units)
            if blueprint.start == "select":
                chooser.select(units)
        chooser.normalise(units)


class _Seen(NamedTuple):
    """Values of units at a consumer, and gradients of its columns."""

    values: Tensor
    """(N, units): a sample of the consumer's input."""
    gradients: Tensor
    """(units, M): of the loss by the columns of each unit."""


@final
class _Chooser:
    def __init__(
        self,
        width: KasminaWidth,
        model: nn.Module,
        loss_fn: LossFn,
        batches: Sequence[Any],
        recipe: Recipe,
    ) -> None:
        self.width = width
        self.model = model
        self.loss_fn = loss_fn
        self.batches = batches
        self.generator = source(recipe.seed % 2**63)

    # --- the three ways ---------------------------------------------------------------------------

    def resize(self, kernel: UnitsKernel) -> None:
        """Rows of the size of the host's own."""
        with torch.no_grad():
            for part in parts_of(self.width.members):
                piece = tensor_of(kernel.get_submodule(part.key), part.tensor)
                if part.member.role != "consumer" and piece.ndim > 1:
                    piece.mul_(spread(tensor_of(part.module, part.tensor)) / spread(piece))

    def threshold(self, kernel: UnitsKernel) -> None:
        """Rows of the size of the host's own, each active on a part of the data."""
        self.resize(kernel)
        with torch.no_grad():
            producers = [part for part in parts_of(self.width.members) if part.tensor == "bias"]
            producers = [part for part in producers if part.member.role == "producer"]
            normed = any(member.role == "norm" for member, _ in self.width.members)
            if len(producers) != 1 or normed:
                return  # a batch norm sets thresholds itself
            (part,) = producers
            bias = tensor_of(kernel.get_submodule(part.key), "bias")
            seen = self._values(kernel, part.module, part.member, of_output=True)
            low, high = _QUANTILES
            drawn = uniform(seen.shape[1], self.generator) * (high - low) + low
            ordered = seen.sort(dim=0).values
            index = (drawn * (len(seen) - 1)).long().to(seen.device)
            bias.copy_(-ordered.gather(0, index[None])[0].to(bias.dtype))

    def select(self, kernel: UnitsKernel) -> None:
        """For each unit the best of many candidates; the first is what it is."""
        spec = self.width.spec
        assert spec is not None
        like = next(kernel.parameters())
        with torch.no_grad(), torch.device(like.device):
            many = UnitsKernel(spec.pieces, _CANDIDATES * kernel.units).to(like.dtype)
            Units().initialise(many, self.generator)
            self.threshold(many)
        scores = torch.zeros(many.units, dtype=torch.float64, device="cpu")
        for number, (member, _) in enumerate(self.width.members):
            if member.role == "consumer":
                new, old = self._seen(many, number)
                scores += _explained(new, old)
        best = scores.reshape(kernel.units, _CANDIDATES).argmax(dim=1)
        self._copy(many, kernel, best + _CANDIDATES * torch.arange(kernel.units, device="cpu"))

    def split(self, kernel: UnitsKernel) -> None:
        """Copies of the units on which the loss depends most, a little apart."""
        worth = torch.zeros(self.width.units, dtype=torch.float64, device="cpu")
        for number, (member, module) in enumerate(self.width.members):
            if member.role == "consumer":
                weight = tensor_of(module, "weight").detach()
                columns = _by_unit(weight, member, growing(module, "consumer")[0][1])
                worth += (self._seen(kernel, number)[1].gradients * columns).abs().sum(1).cpu()
        order = worth.argsort(descending=True)
        chosen = order[torch.arange(kernel.units, device="cpu") % len(order)]
        with torch.no_grad():
            for part in parts_of(self.width.members):
                if part.member.role == "consumer":
                    continue
                host = tensor_of(part.module, part.tensor).detach()
                piece = tensor_of(kernel.get_submodule(part.key), part.tensor)
                copies = _by_unit(host, part.member, part.dim)[chosen.to(host.device)]
                if part.member.role == "producer" and piece.ndim > 1:
                    noise = normal(copies.shape, self.generator).to(copies)
                    copies = copies + _APART * spread(host) * noise
                _set_units(piece, copies, part.member, part.dim)

    def normalise(self, kernel: UnitsKernel) -> None:
        """Give the channels of batch norms the statistics of the data."""
        for number, (member, module) in enumerate(self.width.members):
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                x = self._values(kernel, module, member, of_output=False)
                part = kernel.get_submodule(f"{member.role}{number}")
                tensor_of(part, "running_mean").copy_(x.mean(dim=0))
                tensor_of(part, "running_var").copy_(x.var(dim=0))

    # --- passes on the side -----------------------------------------------------------------------

    @contextmanager
    def _passing(self, kernel: UnitsKernel) -> Iterator[None]:
        mode = training_like_mode(self.model)
        with (
            side_effect_free(self.model, training=mode),
            torch.no_grad(),
            self.width.trying(kernel),
        ):
            freeze_statistics(self.model)
            yield

    def _values(
        self, kernel: UnitsKernel, module: nn.Module, member: Member, *, of_output: bool
    ) -> Tensor:
        """Values (N, places) that new units have where a module gives them, or reads them."""
        found: list[Tensor] = []

        def watch(_: nn.Module, args: Any, output: Tensor) -> None:
            x = output if of_output else args[0]
            axis = unit_axis(module, x)
            found.append(_rows(last_units(x.detach(), kernel.units, axis, member), axis))

        with self._passing(kernel):
            handle = module.register_forward_hook(watch)
            try:
                for batch in self.batches:
                    self.loss_fn(self.model, batch)
            finally:
                handle.remove()
        return torch.cat(found)

    def _seen(self, kernel: UnitsKernel, number: int) -> tuple[_Seen, _Seen]:
        """New units, and those of the host, as one consumer sees them."""
        member, module = self.width.members[number]
        dim = growing(module, "consumer")[0][1]
        columns = tensor_of(kernel.get_submodule(f"consumer{number}"), "weight")
        wanted = [columns, tensor_of(module, "weight")]
        wanted = [tensor for tensor in wanted if tensor.requires_grad]
        values: list[Tensor] = []
        totals = [torch.zeros_like(tensor) for tensor in wanted]

        def watch(_: nn.Module, args: Any, _output: Tensor) -> None:
            values.append(args[0].detach())

        with self._passing(kernel):
            handle = module.register_forward_hook(watch)
            try:
                for batch in self.batches:
                    losses = example_losses(self.loss_fn, self.model, batch)
                    with torch.enable_grad():
                        loss = losses.mean()
                    for index, gradient in enumerate(gradients_of(loss, wanted)):
                        if gradient is not None:
                            totals[index] += gradient
            finally:
                handle.remove()
        axis, units = unit_axis(module, values[0]), self.width.units
        new = torch.cat(
            [_by_place(last_units(x, kernel.units, axis, member), axis, member) for x in values]
        )
        old = torch.cat(
            [_by_place(first_units(x, units, axis, member), axis, member) for x in values]
        )
        gradients = [_by_unit(total, member, dim).double() for total in totals]
        step = max(1, len(new) // _SAMPLES)
        ours = (
            gradients[1]
            if len(gradients) > 1
            else gradients[0].new_zeros(units, gradients[0].shape[1])
        )
        return _Seen(new[::step].double(), gradients[0]), _Seen(old[::step].double(), ours)

    # --- tensors ----------------------------------------------------------------------------------

    def _copy(self, many: UnitsKernel, kernel: UnitsKernel, chosen: Tensor) -> None:
        with torch.no_grad():
            for part in parts_of(self.width.members):
                if part.member.role != "consumer":
                    source = tensor_of(many.get_submodule(part.key), part.tensor)
                    piece = tensor_of(kernel.get_submodule(part.key), part.tensor)
                    units = _by_unit(source, part.member, part.dim)[chosen.to(source.device)]
                    _set_units(piece, units, part.member, part.dim)


def _explained(new: _Seen, old: _Seen) -> Tensor:
    """Squared gradient that each new unit's columns explain, beyond what the host's units can."""
    gram = old.values.T @ old.values
    ridge = 1e-6 * gram.diagonal().mean() + 1e-12
    gram += ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    share = torch.linalg.solve(gram, old.values.T @ new.values)
    rest = (new.values - old.values @ share).square().sum(dim=0)
    gradients = new.gradients - share.T @ old.gradients
    whole = new.values.square().sum(dim=0)
    alive = rest > 1e-6 * whole
    score = gradients.square().sum(dim=1) / rest.clamp_min(1e-300)
    return torch.where(alive, score, torch.zeros_like(score)).cpu()


def _rows(x: Tensor, axis: int) -> Tensor:
    """(N, units and places) of a tensor whose units are on an axis."""
    moved = x.movedim(axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _by_place(x: Tensor, axis: int, member: Member) -> Tensor:
    """(N, units), the places of a unit one after another."""
    rows = _rows(x, axis).reshape(-1, member.outer, x.shape[axis] // member.places, member.inner)
    return rows.movedim(2, 3).flatten(0, 2)


def _by_unit(tensor: Tensor, member: Member, dim: int) -> Tensor:
    """(units, everything else) of a tensor that has its units on an axis."""
    return _split(tensor, member, dim).flatten(1)


def _set_units(tensor: Tensor, units: Tensor, member: Member, dim: int) -> None:
    """Undo ``_by_unit``, in place."""
    parts = _split(tensor, member, dim)
    parts.copy_(units.reshape(parts.shape))


def _split(tensor: Tensor, member: Member, dim: int) -> Tensor:
    """View (units, outer, inner, everything else)."""
    moved = tensor.movedim(dim, 0)
    return moved.view(member.outer, -1, member.inner, *moved.shape[1:]).movedim(1, 0)
