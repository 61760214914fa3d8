"""Proof of widths: outputs with one more unit, which nothing reads and which is read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.execution.kernel import FAULTS
from esper.execution.passes.batches import tensors_in
from esper.execution.passes.isolation import gradients_of
from esper.widths.example import Example
from esper.widths.found import Width
from esper.widths.members import Member
from esper.widths.noise import normal, source
from esper.widths.widened import Leaf, Widened, placed, spread

_PLAIN = (int, float, str, type(None))
_DRAWS = 2  # a unit, and the same turned round


def prove(
    example: Example, modules: Mapping[str, nn.Module], widths: Sequence[Width], *, eps: float
) -> dict[str, str]:
    """Say of each width that fails its proof why, by name.

    All are proved in the same passes; parts of them only to tell which one fails. What evaluation
    mode does not reach is proved in training mode. What would drown the units gets other values
    meanwhile: biases, parameters that are all zero, as in a residual branch at birth, and running
    statistics that are not the example's.

    Args:
        example: The model and what it runs on.
        modules: Modules of the model by name.
        widths: Those to prove.
        eps: Spacing of numbers at 1 in the coarsest type that the model computes with; outputs are
            equal to rounding if they differ by less than its root, relative to the largest.
    """
    proof = _Proof(example, modules, widths, eps**0.5)
    generator = source(0)
    for training, biases in ((False, False), (False, True), (True, False)):
        if proof.left():
            told = _telling(example.model, generator, biases=biases)
            # A model that cannot run with these values tells nothing.
            with suppress(*FAULTS), placed(told), placed(_statistics(example)):
                proof.begin(training=training)
                for draw in range(_DRAWS):
                    proof.check(proof.left(), draw)
    return {w.name: _silent(proof.missing[w.name]) for w in proof.left()} | proof.faults


@final
class _Proof:
    """Proof of widths, as far as it got.

    Attributes:
        faults: What is wrong, by name of the width.
        missing: Members whose new weights were not yet seen to matter, by name of the width.
    """

    def __init__(
        self,
        example: Example,
        modules: Mapping[str, nn.Module],
        widths: Sequence[Width],
        tolerance: float,
    ) -> None:
        self.faults: dict[str, str] = {}
        self.missing = {
            w.name: {
                m
                for m in w.members
                if m.role != "count" and any(True for _ in modules[m.name].parameters())
            }
            for w in widths
        }
        self._example = example
        self._modules = modules
        self._common: dict[frozenset[type[nn.Module]], set[tuple[type[nn.Module], str, Any]]] = {}
        # Alike ones are side by side, so that halves fail or pass together.
        self._widths = sorted(widths, key=lambda width: width.heads)
        self._tolerance = tolerance

    def left(self) -> list[Width]:
        """Widths that are neither proved nor refuted."""
        return [w for w in self._widths if self.missing[w.name] and w.name not in self.faults]

    def begin(self, *, training: bool) -> None:
        """Go on in this mode of the model."""
        self._training = training
        with torch.no_grad():
            self._base = self._outputs()

    def check(self, widths: Sequence[Width], draw: int) -> None:
        """Prove these widths all at once; if that fails, each half of them.

        What two attentions of a class cannot do, no other is tried with that is as they are where
        the two agree.
        """
        fault = self._attempt(widths, draw) if widths else ""
        half = len(widths) // 2
        if fault and half:
            self.check(widths[:half], draw)
            self.check([w for w in widths[half:] if w.name not in self.faults], draw)
        elif fault:
            self.faults[widths[0].name] = fault
            self._refuse_alike(widths[0], f"as in {widths[0].name!r}, {fault}")

    def _refuse_alike(self, refuted: Width, told: str) -> None:
        traits = self._traits(refuted)
        classes = frozenset(kind for kind, name, _ in traits if not name)
        first = self._common.get(classes)
        self._common[classes] = common = traits if first is None else first & traits
        if classes and first is not None:
            alike = (width for width in self.left() if common <= self._traits(width))
            self.faults |= {width.name: told for width in alike}

    def _traits(self, width: Width) -> set[tuple[type[nn.Module], str, Any]]:
        """Classes, attributes and children of the modules that say how many heads there are."""
        modules = [self._modules[m.name] for m in width.members if m.role == "count"]
        found: set[tuple[type[nn.Module], str, Any]] = {(type(one), "", None) for one in modules}
        for one in modules:
            held: dict[str, Any] = {name: type(child) for name, child in one.named_children()}
            for name, value in vars(one).items():
                told = isinstance(value, _PLAIN)
                held[name] = value if told else getattr(value, "__code__", type(value))
            found |= {(type(one), name, value) for name, value in held.items()}
        return found

    def _attempt(self, widths: Sequence[Width], draw: int) -> str:
        """Fault of these widths, or ``""``; members whose new weights matter are crossed off."""
        for read in (False, True):
            widened = Widened(self._modules, widths, draw=draw, read=read)
            try:
                with widened.in_place(), torch.enable_grad():
                    outputs = self._outputs()
                    fault = "" if read else _difference(self._base, outputs, self._tolerance)
                    # Rows have no gradients behind columns of zeros; a second pass shows them all.
                    found = _moving(widened.leaves, outputs) if read else []
            except FAULTS as error:
                return f"the model fails with one more unit: {error}"
            if fault:
                return fault
            for name, member, _ in found:
                self.missing[name].discard(member)
        return ""

    def _outputs(self) -> list[Tensor]:
        outputs = self._example.run(training=self._training)
        return [t for t in tensors_in(outputs) if t.is_floating_point()]


def _moving(leaves: Mapping[Leaf, Tensor], outputs: Sequence[Tensor]) -> list[Leaf]:
    """New weights whose gradients are not zero, so that the outputs change with them."""
    generator = source(0)
    # Random weights: the sum of a softmax, or of a layer norm, depends on nothing.
    weighted = [(t * normal(t.shape, generator).to(t)).sum() for t in outputs if t.requires_grad]
    if not weighted:
        return []
    total = torch.stack([term.to(weighted[0]) for term in weighted]).sum()
    gradients = gradients_of(total, list(leaves.values()))
    found = zip(leaves, gradients, strict=True)
    return [leaf for leaf, g in found if g is not None and g.any() and g.isfinite().all()]


def _difference(before: Sequence[Tensor], after: Sequence[Tensor], tolerance: float) -> str:
    """In what outputs differ by more than rounding; empty if they do not."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return "with one more unit the outputs have another shape"
    for one, other in zip(before, after, strict=True):
        size = one.nan_to_num(0.0, 0.0, 0.0).abs().max() if one.numel() else one.new_zeros(())
        atol = float(size) * tolerance
        if not torch.allclose(one, other.detach(), rtol=0.0, atol=atol, equal_nan=True):
            gap = float((one - other.detach()).abs().max() / size)
            return (
                f"one more unit that nothing reads changes the outputs by {gap:.1g} of their size"
            )
    return ""


def _silent(missing: set[Member]) -> str:
    name = min(member.name for member in missing)
    return f"the outputs do not depend on a new unit's weights in {name!r}"


def _telling(
    model: nn.Module, generator: torch.Generator, *, biases: bool
) -> dict[tuple[nn.Module, str], Tensor]:
    """Random values for the parameters that are all zero; zeros for biases, unless they stay."""
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is None or not p.is_floating_point():
                continue
            if name == "bias" and not biases:
                found[module, name] = torch.zeros_like(p)
            elif not (p.flatten()[:9].any() or p.any()):
                noise = normal(p.shape, generator) * spread(p)
                found[module, name] = noise.to(p.device, p.dtype)
    return found


def _statistics(example: Example) -> dict[tuple[nn.Module, str], Tensor]:
    """Statistics of the example for the batch norms that keep them; none if it is too small."""
    norms = [
        m
        for m in example.model.modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    found: dict[tuple[nn.Module, str], Tensor] = {}

    @contextmanager
    def estimating() -> Iterator[None]:
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        yield
        for norm in norms:
            mean, variance = (norm.get_buffer(f"running_{name}") for name in ("mean", "var"))
            # Channels that hardly vary would show every rounding.
            found[norm, "running_mean"] = mean.clone()
            found[norm, "running_var"] = variance + 0.01 * variance.mean()

    # A batch norm in training refuses a single value.
    with suppress(*FAULTS), torch.no_grad():
        if norms:
            example.run(estimating(), training=False)
    return found
