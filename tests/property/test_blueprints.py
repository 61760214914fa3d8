import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from esper.blueprints import BLUEPRINTS, build, fitting
from esper.contracts.seeds import LayerSpec
from esper.testing.blueprint_laws import example, written_shape

QUICK = settings(max_examples=60, deadline=None)
SIZES = st.integers(1, 40)


@st.composite
def layers(draw: st.DrawFn) -> LayerSpec:
    kind = draw(st.sampled_from(["features", "sequence", "conv1d", "conv2d"]))
    rank = {"conv1d": 1, "conv2d": 2}.get(kind, 0)
    moves = [(draw(st.integers(3, 12)), draw(st.integers(1, 3))) for _ in range(rank)]
    in_size = draw(SIZES)
    return LayerSpec(
        kind=kind,
        in_size=in_size,
        out_size=draw(st.one_of(st.just(in_size), SIZES)),
        in_extent=tuple(extent for extent, _ in moves),
        out_extent=tuple(-(-extent // stride) for extent, stride in moves),
    )


@QUICK
@given(spec=layers(), share=st.floats(1, 50), name=st.sampled_from(BLUEPRINTS.names()))
def test_a_budget_is_used_and_never_exceeded(spec: LayerSpec, share: float, name: str) -> None:
    blueprint = BLUEPRINTS.create(name)
    assume(not blueprint.objection(spec))
    fewest, widest = blueprint.count(spec, 1), blueprint.widest(spec)
    budget = int(share * fewest)
    kernel = build(name, spec, budget=budget, seed=0)
    used = sum(p.numel() for p in kernel.parameters())
    width = blueprint.width_within(spec, budget)
    assert used == blueprint.count(spec, width) <= budget
    if width == widest:
        return
    assert blueprint.count(spec, width + 1) > budget
    if share >= 10:
        assert used >= 0.7 * budget


@QUICK
@given(spec=layers(), batch=st.integers(0, 3), length=st.integers(1, 6), data=st.data())
def test_a_kernel_is_silent_and_writes_the_layer_s_shape(
    spec: LayerSpec, batch: int, length: int, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(fitting(spec)))
    kernel = build(name, spec, budget=100_000, seed=data.draw(st.integers(-5, 2**64)))
    x = example(spec, batch=batch, length=length)
    y = kernel(x)
    assert y.shape == written_shape(spec, x)
    assert torch.count_nonzero(y) == 0


@QUICK
@given(
    numbers=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 2)),
        min_size=2,
        max_size=2,
    ),
    extents=st.lists(st.tuples(st.integers(9, 24), st.integers(9, 24)), min_size=2, max_size=2),
    name=st.sampled_from(["conv_bottleneck", "conv_block", "depthwise"]),
)
def test_beside_a_convolution_at_every_resolution(
    numbers: list[tuple[int, int, int, int]], extents: list[tuple[int, int]], name: str
) -> None:
    size, stride, padding, dilation = ((one, other) for one, other in zip(*numbers, strict=True))
    host = nn.Conv2d(2, 3, size, stride, padding, dilation)
    first, second = extents
    y = host(torch.ones(1, 2, *first))
    spec = LayerSpec(
        kind="conv2d",
        in_size=2,
        out_size=3,
        in_extent=first,
        out_extent=tuple(y.shape[2:]),
        kernel_size=size,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    kernel = build(name, spec, budget=1000, seed=0)
    for extent in (first, second):
        x = torch.ones(1, 2, *extent)
        assert kernel(x).shape == host(x).shape
