"""Passes on the side of models with sparse and nested tensors, and with parts in TorchScript."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError
from esper.execution.side_effect_free import side_effect_free
from esper.execution.undoing.changes import equal_bits

DENSE = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    Tensor.to_sparse_coo,
    Tensor.to_sparse_csr,
    Tensor.to_sparse_csc,
    lambda t: torch.nested.nested_tensor([t[:1], t]),
    lambda t: torch.nested.nested_tensor([t[:1], t], layout=torch.jagged),
]


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested).*")
@pytest.mark.parametrize("laid_out", LAYOUTS)
def test_values_of_any_layout_are_compared(laid_out: Callable[[Tensor], Tensor]) -> None:
    kept = laid_out(DENSE)
    assert equal_bits(kept, kept.clone())
    assert not equal_bits(kept, laid_out(DENSE + 1))
    assert not equal_bits(kept, laid_out(DENSE[:2]))
    assert not equal_bits(kept, DENSE)


@pytest.mark.filterwarnings("ignore:.*Sparse.*")
@pytest.mark.parametrize("laid_out", LAYOUTS[:3])
def test_a_sparse_buffer_is_put_back(laid_out: Callable[[Tensor], Tensor]) -> None:
    model = nn.Module()
    model.register_buffer("links", laid_out(DENSE))
    links = model.links
    with side_effect_free(model):
        model.get_buffer("links").mul_(2)
    assert model.links is links
    assert equal_bits(model.get_buffer("links"), laid_out(DENSE))


class Graph(nn.Module):
    """Nodes (N, 6) and their links (N, N), sparse, to (N, 3)."""

    def __init__(self, links: Tensor) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("links", links)

    @override
    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        y = torch.sparse.mm(links, torch.relu(self.fc1(x)))
        return self.fc2(torch.sparse.mm(self.get_buffer("links"), y))  # type: ignore[no-any-return]


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return model(*batch).square().mean(dim=1)  # type: ignore[no-any-return]


def engine(model: nn.Module, layers: list[str], batch: Any) -> esper.Tamiyo:
    esper.wrap(model, layers)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=[batch])


def test_sparse_links_in_a_batch_and_in_a_buffer() -> None:
    links = torch.eye(5).to_sparse()
    assert engine(Graph(links), ["fc1"], (torch.randn(5, 6), links.clone())).layers


def traced(part: nn.Module) -> Any:
    return torch.jit.trace(part.eval(), torch.randn(5, 6))  # type: ignore[no-untyped-call]


def scripted(part: nn.Module) -> Any:
    return torch.jit.script(part)


def frozen(part: nn.Module) -> Any:
    return torch.jit.freeze(torch.jit.script(part.eval()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("compiled", [traced, scripted, frozen])
def test_a_part_in_torchscript(compiled: Callable[[nn.Module], Any]) -> None:
    part = compiled(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).requires_grad_(False))
    model = nn.Sequential(part, nn.Linear(8, 3))
    before = {name: value.clone() for name, value in part.state_dict().items()}
    assert engine(model, ["1"], (torch.randn(5, 6),)).layers
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(("inside", "way_out"), [("", "before"), ("part", "'part' as a whole")])
def test_layers_in_torchscript_are_refused_in_a_sentence(inside: str, way_out: str) -> None:
    part = scripted(nn.Sequential(nn.Linear(6, 8), nn.ReLU()))
    model = nn.Sequential(OrderedDict(part=part)) if inside else part
    with pytest.raises(ConfigError, match=f"in a module of TorchScript.*{way_out}"):
        esper.wrap(model, [f"{inside}.0".strip(".")])
    if inside:
        assert esper.wrap(model, [inside])(torch.ones(2, 6)).shape == (2, 8)
