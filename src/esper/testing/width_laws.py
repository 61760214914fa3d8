"""Laws of blueprints of units, for every width that one fits.

Subclass ``WidthLaws`` and give it a ``case``::

    class TestMine(WidthLaws):
        @pytest.fixture(params=cases([Mine()], WIDTHS), ids=str)
        def case(self, request: pytest.FixtureRequest) -> Case:
            return request.param
"""

# ruff: noqa: D102 (the name of a law is what it says)

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec, Piece
from esper.testing.blueprint_laws import Case


def _width(
    *pieces: tuple[str, str, tuple[int, ...], int], units: int = 6, kind: str = "width"
) -> LayerSpec:
    made = tuple(Piece(part=p, tensor=t, shape=s, dim=d) for p, t, s, d in pieces)
    return LayerSpec(kind=kind, in_size=units, out_size=units, pieces=made)


WIDTHS = (
    _width(
        ("producer0", "weight", (1, 8), 0),
        ("producer0", "bias", (1,), 0),
        ("consumer1", "weight", (4, 1), 1),
    ),
    _width(
        ("producer0", "weight", (1, 3, 3, 3), 0),
        ("norm1", "weight", (1,), 0),
        ("norm1", "bias", (1,), 0),
        ("norm1", "running_mean", (1,), 0),
        ("norm1", "running_var", (1,), 0),
        ("consumer2", "weight", (4, 16), 1),
        ("consumer3", "weight", (5, 1, 1, 1), 1),
        units=4,
    ),
    _width(
        ("producer0", "weight", (8, 12), 1),
        ("producer0", "bias", (12,), 0),
        ("consumer1", "weight", (8, 4), 1),
        units=2,
        kind="heads",
    ),
)
"""Widths between linear layers, between a convolution with a batch norm and two readers, and heads
of attention."""


class WidthLaws:
    """Laws of the tensors of new units; a subclass gives the fixture ``case``."""

    @pytest.fixture
    def case(self, request: pytest.FixtureRequest) -> Case:
        raise NotImplementedError("give the fixture `case`, parametrised over cases(..., WIDTHS)")

    def test_is_for_widths_alone(self, case: Case) -> None:
        blueprint = case.blueprint
        assert blueprint.name
        assert blueprint.description
        other = LayerSpec(kind="features", in_size=4, out_size=4)
        assert "features" in blueprint.objection(other)
        with pytest.raises(KernelError, match="features"):
            blueprint.build(other, budget=1000, seed=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_has_the_tensors_of_its_units(self, case: Case, dtype: torch.dtype) -> None:
        kernel = case.build(dtype=dtype)
        units = case.blueprint.width_within(case.spec, case.ample)
        for piece in case.spec.pieces:
            tensor = _tensor(kernel, piece)
            assert tensor.shape == piece.of(units)
            assert tensor.dtype == dtype
            assert tensor.isfinite().all()

    def test_nothing_reads_new_units(self, case: Case) -> None:
        kernel = case.build()
        columns = [p for n, p in kernel.named_parameters() if n.startswith("consumer")]
        assert columns
        assert not any(bool(p.any()) for p in columns)

    def test_units_differ(self, case: Case) -> None:
        kernel = case.build()
        for piece in case.spec.pieces:
            if piece.part.startswith("producer") and piece.tensor == "weight":
                rows = _tensor(kernel, piece).detach().movedim(piece.dim, 0).flatten(1)
                assert torch.pdist(rows).min() > 0

    def test_the_seed_is_the_only_randomness(self, case: Case) -> None:
        before = torch.get_rng_state()
        first, second, other = (case.build(seed=seed).state_dict() for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_state_goes_into_a_fresh_build(self, case: Case) -> None:
        kernel, fresh = case.awake(), case.build(seed=9)
        fresh.load_state_dict(kernel.state_dict())
        state = kernel.state_dict()
        assert all(torch.equal(state[key], value) for key, value in fresh.state_dict().items())

    @pytest.mark.parametrize(("crossed", "corner"), [(0, 0), (5, 0), (0, 2), (7, 3)])
    def test_the_budget_holds_what_a_merge_adds(
        self, case: Case, crossed: int, corner: int
    ) -> None:
        spec, blueprint = replace(case.spec, crossed=crossed, corner=corner), case.blueprint
        fewest = blueprint.count(spec, 1)
        with pytest.raises(KernelError, match=rf"too small .* smallest kernel has {fewest}$"):
            blueprint.build(spec, budget=fewest - 1, seed=0)
        for budget in (fewest, 5 * fewest, 17 * fewest + 1):
            kernel = blueprint.build(spec, budget=budget, seed=0)
            own = sum(p.numel() for p in kernel.parameters())
            units = blueprint.width_within(spec, budget)
            assert own + units * crossed + units**2 * corner == blueprint.size_within(spec, budget)
            assert blueprint.size_within(spec, budget) <= budget < blueprint.count(spec, units + 1)


def _tensor(kernel: nn.Module, piece: Piece) -> Tensor:
    tensor = getattr(kernel.get_submodule(piece.part), piece.tensor)
    assert isinstance(tensor, Tensor)
    return tensor
