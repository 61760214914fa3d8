"""Kernels in widths under what PyTorch does to a model: compiled, functional, in other types."""

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import esper
from esper.contracts.seeds import SeedState
from esper.execution.passes.batches import tensors_in
from tests.unit.widths.grown import far, grow, outputs, widths, wrapped
from tests.unit.widths.test_found import CASES, ROWS

COMPILED = ("mlp", "resnet", "mobile", "swiglu", "Conv1D", "flattened channels", "heads inside")
TYPED = [name for name in CASES if CASES[name][2] and name not in ("bfloat16", "graph convolution")]


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def blended(case: str) -> tuple[Any, Any]:
    model, x = wrapped(case)
    for width in widths(model):
        grow(width)
        width.set_alpha(0, 0.5)
    return model, x


def gradients(model: nn.Module, x: Any, call: Any = None) -> list[Tensor]:
    model.zero_grad()
    ys = tensors_in((model if call is None else call)(x))
    torch.stack([y.square().mean() for y in ys]).sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_once_for_every_change(case: str) -> None:
    model, x = wrapped(case)
    model.eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)

    def graphs() -> int:
        assert far(list(tensors_in(compiled(x))), list(tensors_in(model(x)))) < 1e-6
        return int(counter.frame_count)

    assert graphs() == 1
    kernels = [(width, grow(width, to="training")) for width in widths(model)]
    assert graphs() == 1
    for width, _ in kernels:
        width.advance(0, SeedState.BLENDING)
    assert graphs() == 2
    for width, _ in kernels:
        width.set_alpha(0, 0.5)
    assert graphs() == 2
    for width, _ in kernels:
        width.advance(0, SeedState.HOLDING)
        width.advance(0, SeedState.FOSSILIZED)
    for width, kernel in kernels:
        width.merge(kernel)
    assert graphs() == graphs() == 3


@pytest.mark.parametrize("case", ["resnet", "heads"])
def test_compiled_training(case: str) -> None:
    model, x = blended(case)
    twin = copy.deepcopy(model)
    ours = gradients(model, x, torch.compile(model, fullgraph=True, backend="aot_eager"))
    for one, other in zip(ours, gradients(twin, x), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_functional_calls() -> None:
    model, x = blended("mlp")
    values = {name: 1.5 * p.detach() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, values, (x,))

    def loss(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (row[None],)).square().mean()  # type: ignore[no-any-return]

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    torch.testing.assert_close(model(x), y)
    whole = gradients(model, x)
    for one, other in zip(each.values(), whole, strict=True):
        torch.testing.assert_close(one.mean(0), other)


def test_checkpointed_activations() -> None:
    model, x = blended("resnet")
    twin, shapes = copy.deepcopy(model), [p.shape for p in model.parameters()]

    def call(x: Tensor) -> Any:
        x = model.stem(x)
        for block in (model.b1, model.b2):
            x = checkpoint(block, x, use_reentrant=False)
        return model.head(x.mean((2, 3)))

    for one, other in zip(gradients(model, x, call), gradients(twin, x), strict=True):
        torch.testing.assert_close(one, other)
    assert [p.shape for p in model.parameters()] == shapes


@pytest.mark.parametrize("case", TYPED)
def test_other_types(case: str) -> None:
    for dtype, near in ((torch.float64, 1e-13), (torch.bfloat16, 0.03)):
        model, x = wrapped(case)
        kernels = [(width, grow(width, to="fossilized")) for width in widths(model)]
        model.to(dtype)
        x = x.to(dtype)
        before = outputs(model, x)
        for width, kernel in kernels:
            width.merge(kernel)
        assert far(outputs(model, x), before) < near
        assert {p.dtype for p in model.parameters()} == {dtype}
        gradients(model, x)


@pytest.mark.parametrize("case", TYPED)
def test_autocast(case: str) -> None:
    model, x = wrapped(case)
    kernels = [(width, grow(width, to="fossilized")) for width in widths(model)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = outputs(model, x)
        gradients(model, x)
        for width, kernel in kernels:
            width.merge(kernel)
        assert far(outputs(model, x), before) < 0.03
        gradients(model, x)


def test_exported_and_saved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    esper.wrap(model, widen="auto", example=ROWS)
    (width,) = widths(model)
    grow(width)
    width.set_alpha(0, 0.5)
    before = outputs(model.eval(), ROWS)
    for one in (model, esper.harden(model)):
        exported = torch.export.export(one, (ROWS,)).module()
        assert far([exported(ROWS)], before) < 1e-6
        file = io.BytesIO()
        torch.save(one, file)
        file.seek(0)
        assert far(outputs(torch.load(file, weights_only=False), ROWS), before) < 1e-6
    assert b"esper" not in file.getvalue()
