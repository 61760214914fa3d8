"""Laws of blueprints, for every layer that one fits.

Subclass ``BlueprintLaws`` (and ``SequenceLaws`` where it fits sequences) and give it a ``case``::

    class TestMine(BlueprintLaws):
        @pytest.fixture(params=cases([Mine()]), ids=str)
        def case(self, request: pytest.FixtureRequest) -> Case:
            return request.param
"""

# ruff: noqa: D102 (the name of a law is what it says)

import copy
import pickle  # noqa: TID251 (the law is that a traced kernel can be pickled)
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast, final

import pytest
import torch
from torch import Tensor, fx, nn
from typing_extensions import override

from esper.blueprints.base import Blueprint, describe
from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec

# B batch, T time, F features, C channels

SPECS = (
    LayerSpec(kind="features", in_size=6, out_size=6),
    LayerSpec(kind="features", in_size=7, out_size=4),
    LayerSpec(kind="sequence", in_size=6, out_size=6),
    LayerSpec(kind="sequence", in_size=5, out_size=8),
    LayerSpec(kind="conv1d", in_size=4, out_size=4, in_extent=(12,), out_extent=(12,)),
    LayerSpec(kind="conv1d", in_size=3, out_size=5, in_extent=(9,), out_extent=(4,)),
    LayerSpec(kind="conv2d", in_size=4, out_size=4, in_extent=(6, 8), out_extent=(6, 8)),
    LayerSpec(kind="conv2d", in_size=3, out_size=5, in_extent=(7, 8), out_extent=(4, 4)),
    LayerSpec(
        kind="conv2d",
        in_size=3,
        out_size=4,
        in_extent=(9, 9),
        out_extent=(3, 3),
        kernel_size=(5, 5),
        stride=(2, 2),
    ),
    LayerSpec(kind="features", in_size=6, out_size=6, layout="TBF"),
    LayerSpec(kind="features", in_size=5, out_size=3, layout="NNNF"),
    LayerSpec(kind="sequence", in_size=6, out_size=6, layout="TBF"),
    LayerSpec(kind="sequence", in_size=5, out_size=3, layout="TFB"),
    LayerSpec(
        kind="sequence", in_size=6, out_size=6, in_extent=(7,), out_extent=(7,), layout="LBF"
    ),
    LayerSpec(
        kind="features", in_size=4, out_size=4, in_extent=(6, 8), out_extent=(6, 8), layout="BHWC"
    ),
    LayerSpec(
        kind="conv2d", in_size=3, out_size=5, in_extent=(7, 8), out_extent=(4, 4), layout="HWBC"
    ),
    LayerSpec(kind="conv1d", in_size=4, out_size=4, in_extent=(9,), out_extent=(9,), causal=True),
    LayerSpec(
        kind="conv1d",
        in_size=4,
        out_size=6,
        in_extent=(9,),
        out_extent=(9,),
        kernel_size=(4,),
        padding=(3,),
        padding_after=(3,),
        dilation=(2,),
        padding_mode="circular",
        groups=2,
    ),
    LayerSpec(
        kind="conv2d",
        in_size=3,
        out_size=3,
        in_extent=(6, 8),
        out_extent=(6, 8),
        kernel_size=(3, 5),
        padding=(1, 2),
        padding_mode="reflect",
        groups=3,
    ),
    LayerSpec(kind="pool1d", in_size=3, out_size=5, in_extent=(12,)),
    LayerSpec(kind="pool2d", in_size=2, out_size=4, in_extent=(6, 8), flat=True),
    LayerSpec(kind="pool2d", in_size=3, out_size=4, in_extent=(9, 9), layout="BHWC", flat=True),
)
"""Layers of each kind: same and other sizes; equal, halved (ceil, floor) and valid extents; axes in
another order; what convolutions pad with, and their groups; pictures and signals to features."""


@final
@dataclass(frozen=True)
class Case:
    """Blueprint and a layer that it fits."""

    blueprint: Blueprint
    spec: LayerSpec

    @override
    def __str__(self) -> str:
        spec = self.spec
        written = spec.out_extent or (1,) * len(spec.in_extent)
        extent = "".join(f",{a}:{b}" for a, b in zip(spec.in_extent, written, strict=True))
        more = "".join(f"-{x}" for x in (spec.layout, spec.padding_mode * (spec.groups > 1)) if x)
        causal = "-causal" if spec.causal else ""
        name = f"{self.blueprint.name}-{spec.kind}-{spec.in_size}:{spec.out_size}"
        return f"{name}{extent}{more}{causal}"

    @property
    def batch_axis(self) -> int:
        """Axis of the examples; the first one where it is not known."""
        return max(self.spec.axes.find("B"), 0)

    @property
    def ample(self) -> int:
        """Budget at which the kernel has several units, if it can."""
        return 12 * self.blueprint.count(self.spec, 1)

    def build(self, *, seed: int = 0, **settings: Any) -> nn.Module:
        """Kernel of the ample budget."""
        return self.blueprint.build(self.spec, budget=self.ample, seed=seed, **settings)

    def awake(self, **settings: Any) -> nn.Module:
        """Kernel whose parameters, also those born zero, are random."""
        return awaken(self.build(**settings))


def cases(blueprints: Iterable[Blueprint], specs: Iterable[LayerSpec] = SPECS) -> list[Case]:
    """Pairs of a blueprint and a layer that it fits."""
    layers = list(specs)
    return [Case(b, spec) for b in blueprints for spec in layers if not b.objection(spec)]


def example(
    spec: LayerSpec,
    *,
    batch: int = 3,
    length: int = 5,
    extent: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """Random input of the layer; ``length`` is that of a sequence."""
    shape = replace(spec, in_extent=extent or spec.in_extent).input_shape(batch, length)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def written_shape(spec: LayerSpec, x: Tensor) -> tuple[int, ...]:
    """Shape that the layer writes when it reads ``x``, at the extents of ``spec``."""
    sizes = dict(zip(spec.axes, x.shape, strict=True))
    return spec.output_shape(sizes.get("B", x.shape[0]), sizes.get("T", x.shape[1]))


def awaken(kernel: nn.Module, *, seed: int = 1) -> nn.Module:
    """Make every parameter random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return kernel


def close(a: Tensor, b: Tensor) -> bool:
    """True if equal up to the rounding of another order of additions, in float32."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


class BlueprintLaws:
    """Laws of every kernel; a subclass gives the fixture ``case``."""

    @pytest.fixture
    def case(self, request: pytest.FixtureRequest) -> Case:
        raise NotImplementedError("give the fixture `case`, parametrised over cases(...)")

    def test_says_what_it_is(self, case: Case) -> None:
        blueprint = case.blueprint
        assert blueprint.name
        assert blueprint.kinds
        assert blueprint.description
        assert "\n" not in blueprint.description
        other = LayerSpec(kind="graph", in_size=4, out_size=4)
        assert "graph" in blueprint.objection(other)
        with pytest.raises(KernelError, match="graph"):
            blueprint.build(other, budget=1000, seed=0)

    def test_exactly_zero_at_birth(self, case: Case) -> None:
        kernel, x = case.build(), 100 * example(case.spec)
        for module in (kernel.train(), kernel.eval()):
            assert torch.count_nonzero(module(x)) == 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_keeps_shape_and_dtype(self, case: Case, dtype: torch.dtype) -> None:
        kernel, x = case.awake(dtype=dtype), example(case.spec, dtype=dtype)
        y = kernel(x)
        assert y.shape == written_shape(case.spec, x)
        assert (y.dtype, y.device) == (dtype, x.device)
        assert torch.isfinite(y).all()
        assert {p.dtype for p in kernel.parameters()} == {dtype}

    def test_moves_to_another_dtype(self, case: Case) -> None:
        y = case.awake().to(torch.float64)(example(case.spec, dtype=torch.float64))
        assert y.dtype == torch.float64

    def test_autocast_keeps_zero_at_birth_and_stays_near_full_precision(self, case: Case) -> None:
        x = example(case.spec)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            born, y = case.build()(x), case.awake()(x)
        assert torch.count_nonzero(born) == 0
        assert torch.allclose(y.float(), case.awake()(x), rtol=0.1, atol=0.1)

    def test_every_parameter_learns_within_two_steps(self, case: Case) -> None:
        kernel, x = case.build(), example(case.spec, batch=16)
        target = torch.randn(
            written_shape(case.spec, x), generator=torch.Generator().manual_seed(2)
        )
        optimizer = torch.optim.SGD(kernel.parameters(), lr=0.1)
        reached = set()
        for _ in range(2):
            optimizer.zero_grad()
            (kernel(x) - target).square().mean().backward()
            optimizer.step()
            reached |= {
                n for n, p in kernel.named_parameters() if p.grad is not None and p.grad.any()
            }
        assert reached == {name for name, _ in kernel.named_parameters()}

    def test_the_seed_is_the_only_randomness(self, case: Case) -> None:
        torch.manual_seed(7)
        before = torch.get_rng_state()
        first = case.build(seed=3).state_dict()
        torch.rand(5)
        second = case.build(seed=3).state_dict()
        torch.set_rng_state(before)
        other = case.build(seed=4).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[key], second[key]) for key in first)
        drawn = [key for key in first if first[key].any()]
        assert all(not torch.equal(first[key], other[key]) for key in drawn)
        assert drawn or case.blueprint.fixed_size

    def test_state_goes_into_a_fresh_build(self, case: Case) -> None:
        kernel, fresh, x = case.awake(), case.build(seed=9), example(case.spec)
        fresh.load_state_dict(kernel.state_dict())
        assert torch.equal(fresh(x), kernel(x))

    def test_a_deep_copy_is_equal_and_apart(self, case: Case) -> None:
        kernel, x = case.awake(), example(case.spec)
        y, twin = kernel(x), copy.deepcopy(kernel)
        assert torch.equal(twin(x), y)
        awaken(twin, seed=5)
        assert torch.equal(kernel(x), y)

    def test_nothing_but_parameters(self, case: Case) -> None:
        kernel, x = case.awake(), example(case.spec)
        assert not list(kernel.buffers())
        assert all(parameter.requires_grad for parameter in kernel.parameters())
        y = kernel.train()(x)
        assert torch.equal(kernel.train()(x), y)
        assert torch.equal(kernel.eval()(x), y)

    def test_examples_do_not_see_each_other(self, case: Case) -> None:
        kernel, x, axis = case.awake(), example(case.spec, batch=7), case.batch_axis
        y, count = kernel(x), x.shape[axis]
        alone = torch.cat([kernel(x.narrow(axis, i, 1)) for i in range(count)], dim=axis)
        if case.blueprint.placebo:  # sees others alone, and nothing that is the same for all
            assert not alone.any()
            assert not kernel(x.narrow(axis, 0, 2)).any()
            assert y.all(dim=axis).any()
            assert close(y.sum(dim=axis), torch.zeros(()))
        else:
            assert close(y, alone)
        none = x.narrow(axis, 0, 0)
        assert kernel(none).shape == kernel(x).narrow(axis, 0, 0).shape

    def test_another_example_moves_no_output_but_its_own(self, case: Case) -> None:
        kernel, x, axis = case.awake(), example(case.spec, batch=4), case.batch_axis
        y, changed = kernel(x), x.clone()
        changed.select(axis, 1).add_(10)
        moved = (kernel(changed) != y).transpose(0, axis).flatten(1).any(dim=1)
        if case.blueprint.placebo:
            assert moved.tolist() == [index != 1 and moved[index] for index in range(len(moved))]
            assert moved.any()
        else:
            constant = torch.equal(y, y.narrow(axis, 0, 1).expand_as(y))  # as an offset
            assert moved.tolist() == [index == 1 and not constant for index in range(len(moved))]

    def test_traced_it_is_plain_torch(self, case: Case) -> None:
        kernel = case.awake()
        traced = fx.symbolic_trace(kernel)
        assert not [m for m in traced.modules() if type(m).__module__.startswith("esper")]
        data = pickle.dumps(traced)
        assert b"esper" not in data
        loaded = cast("nn.Module", pickle.loads(data))  # noqa: S301 (our own bytes)
        for batch in (1, 4):
            x = example(case.spec, batch=batch, length=batch + 2)
            assert torch.equal(traced(x), kernel(x))
            assert torch.equal(loaded(x), kernel(x))

    def test_exports_with_any_batch(self, case: Case) -> None:
        kernel = case.awake().eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(
            kernel, (example(case.spec),), dynamic_shapes=({case.batch_axis: batch},)
        ).module()
        for size in (1, 5):
            x = example(case.spec, batch=size)
            assert close(exported(x), kernel(x))

    def test_compiles_in_one_graph(self, case: Case) -> None:
        torch.compiler.reset()
        kernel, x = case.awake(), example(case.spec)
        twin = copy.deepcopy(kernel)
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
        y, expected = compiled(x), kernel(x)
        assert close(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        for got, wanted in zip(twin.parameters(), kernel.parameters(), strict=True):
            assert got.grad is not None
            assert wanted.grad is not None
            assert torch.allclose(got.grad, wanted.grad, rtol=1e-3, atol=1e-4)

    def test_the_smallest_budget_is_named(self, case: Case) -> None:
        fewest = case.blueprint.count(case.spec, 1)
        with pytest.raises(KernelError, match=rf"too small .* smallest kernel has {fewest}$"):
            case.blueprint.build(case.spec, budget=fewest - 1, seed=0)
        kernel = case.blueprint.build(case.spec, budget=fewest, seed=0)
        assert sum(p.numel() for p in kernel.parameters()) == fewest, describe(case.spec)

    def test_the_budget_is_used(self, case: Case) -> None:
        blueprint, spec = case.blueprint, case.spec
        widest, fewest = blueprint.widest(spec), blueprint.count(spec, 1)
        for budget in (10 * fewest, 17 * fewest, 40 * fewest + 1):
            kernel = blueprint.build(spec, budget=budget, seed=0)
            used = sum(p.numel() for p in kernel.parameters())
            assert used <= budget
            if widest is None or budget <= blueprint.count(spec, widest):
                assert used >= 0.7 * budget
            else:
                assert used == blueprint.count(spec, widest)


class SequenceLaws:
    """Laws of the kernels of a sequence; a subclass gives the fixture ``case``."""

    @pytest.fixture
    def case(self, request: pytest.FixtureRequest) -> Case:
        raise NotImplementedError("give the fixture `case`, parametrised over cases(...)")

    @pytest.mark.parametrize("length", [1, 2, 11])
    def test_any_length_and_never_the_future(self, case: Case, length: int) -> None:
        kernel, x = case.awake(), example(case.spec, length=length, extent=(length,))
        y, time = kernel(x), next(case.spec.axes.index(t) for t in "TL" if t in case.spec.axes)
        assert y.shape[time] == length
        for now in range(1, length):
            changed = x.clone()
            changed.narrow(time, now, length - now).fill_(1000)
            assert torch.equal(kernel(changed).narrow(time, 0, now), y.narrow(time, 0, now))
