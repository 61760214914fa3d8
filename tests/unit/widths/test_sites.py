"""``esper.sites``: how it is called, what it prints, and what it leaves behind."""

import json
import random  # noqa: TID251 (only to see that its state stays)
from collections import namedtuple
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.contracts.site import Site
from tests.unit.widths import models
from tests.unit.widths.models import Written, mlp
from tests.unit.widths.test_found import IMAGES, ROWS, TOKENS, answer

Pair = namedtuple("Pair", "inputs targets")
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("with_loss", [False, True])
def test_an_example_on_which_nothing_can_be_seen(value: float, *, with_loss: bool) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), torch.ones(6, 4)
    spoilt = x.clone()
    spoilt[0, 0] = value
    for wrong, held in ((spoilt, "values that are NaN or infinite"), (x[:0], "no elements")):
        batch = (wrong, TARGETS[: len(wrong)]) if with_loss else wrong
        told = rf"the example has {held}, in a tensor of shape \({len(wrong)}, 4\)"
        with pytest.raises(esper.ConfigError, match=told):
            esper.sites(model, batch, loss if with_loss else None)


def test_an_example_may_hold_what_the_model_does_without() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def masked(inner: nn.Module, batch: Any) -> Tensor:
        return (inner(batch[0]) + batch[1]).softmax(-1)[:, 0]  # type: ignore[no-any-return]

    mask = torch.tensor([[0.0, 0.0], [0.0, float("-inf")]]).repeat(3, 1)
    (width, _) = esper.sites(model, (torch.randn(6, 4), mask), masked)
    assert width.refused == ""


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_a_table() -> None:
    torch.manual_seed(0)
    found = esper.sites(models.resnet(), IMAGES)
    assert str(found).splitlines() == [
        "site    units    cost  grows with",
        "stem.0      4     163  b1.c2 > stem.1, b1.n2 > b1.c1, b2.c1, b2.down.0",
        "b1.c1       4      74  b1.n1 > b1.c2",
        "b2.c1       6      92  b2.n1 > b2.c2",
        "b2.c2       6      72  b2.down.0 > b2.n2, b2.down.1 > head",
        "head       10       -  no: the model returns it",
        "4 of 5 widths can grow",
    ]


def test_a_table_of_long_names_fits() -> None:
    inner = mlp(lambda m, h: h.softmax(-1))
    for _ in range(12):
        inner = nn.Sequential(inner)
    model = nn.Sequential(*(nn.Sequential(deepcopy(inner), nn.Linear(4, 8)) for _ in range(3)))
    lines = str(esper.sites(model, ROWS)).splitlines()
    assert max(map(len, lines)) <= 80


def test_entries() -> None:
    found = esper.sites(models.swiglu(), TOKENS)
    assert len(found) == 2
    gate = found["gate"]
    assert gate is found["up"] is found[0] is next(iter(found))
    assert (gate.name, gate.kind, gate.units, gate.cost, gate.refused) == (
        "gate",
        "width",
        12,
        26,
        "",
    )
    assert (gate.producers, gate.norms, gate.consumers) == (("gate", "up"), (), ("down",))
    assert gate.site == Site("gate", "width") == Site.parse(str(gate.site))
    first = json.loads(json.dumps(found.to_json()))[0]
    assert first == {
        "name": "gate",
        "kind": "width",
        "units": 12,
        "cost": 26,
        "producers": ["gate", "up"],
        "norms": [],
        "consumers": ["down"],
        "refused": "",
    }
    with pytest.raises(esper.ConfigError, match=r"unknown site 'gat'; .* Did you mean 'gate'\?"):
        found["gat"]


@pytest.mark.parametrize(
    "batch",
    [ROWS, (ROWS,), [ROWS], {"x": ROWS}],
    ids=["tensor", "tuple", "list", "dictionary"],
)
def test_the_model_is_called_with_the_batch(batch: Any) -> None:
    model = Written(lambda m, x: m.mlp(x), mlp=mlp())
    assert answer(esper.sites(model, batch)) == {"mlp.a": (6, 13, "mlp.a >> mlp.b")}


@pytest.mark.parametrize("batch", [(ROWS, TARGETS), [ROWS, TARGETS], Pair(ROWS, TARGETS)])
def test_a_loss_function_takes_the_batch_as_it_is(batch: Any) -> None:
    found = esper.sites(mlp(), batch, loss_fn=loss)
    assert answer(found) == {"a": (6, 13, "a >> b")}
    assert found["b"].refused == "the loss reads it (log_softmax)"


def test_what_the_loss_does_not_read_may_grow() -> None:
    """Features that the model returns, and a head that the loss calls."""
    layers = {"a": nn.Linear(8, 6), "b": nn.Linear(6, 4)}
    model: Any = Written(lambda m, x: m.a(x), **layers)
    assert esper.sites(model, ROWS)["a"].refused == "the model returns it"
    heads = esper.sites(model, ROWS, loss_fn=lambda m, x: model.b(m(x)).square().mean(1))
    assert answer(heads) == {"a": (6, 13, "a >> b")}
    each = esper.sites(model, ROWS, loss_fn=lambda m, x: m(x).square())
    assert each["a"].refused == "the loss has a value for each unit"


def test_one_loss_may_call_the_model_twice() -> None:
    def contrast(model: nn.Module, x: Tensor) -> Any:
        return (model(x) - model(x.flip(0))).square().mean(1)

    assert answer(esper.sites(mlp(), ROWS, loss_fn=contrast)) == {"a": (6, 13, "a >> b")}


def test_a_penalty_on_weights_is_named() -> None:
    def penalised(model: Any, x: Tensor) -> Any:
        return model(x).square().mean(1) + model.a.weight.square().sum()

    found = esper.sites(mlp(), ROWS, loss_fn=penalised)
    assert found["a"].refused == "the loss reads the weights of 'a' directly"


def test_reduced_precision() -> None:
    def autocast(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(model, batch)

    deep = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.ReLU())))
    assert len(answer(esper.sites(deep, (ROWS, TARGETS), loss_fn=autocast))) == 5


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    model: Any = models.resnet()
    model.b1.eval()  # a frozen part
    batch = (IMAGES.clone(), torch.tensor([1, 2, 3, 4]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    attributes = [dict(vars(module)) for module in model.modules()]
    draws = torch.get_rng_state(), random.getstate()

    def writes(model: nn.Module, given: Any) -> Tensor:
        return loss(model, (given[0].mul_(0.5), given[1]))

    assert len(answer(esper.sites(model, batch, loss_fn=writes))) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert random.getstate() == draws[1]
    assert torch.equal(batch[0], IMAGES)
    assert model.training
    assert not model.b1.training


@pytest.mark.parametrize("batch", [ROWS[:1], torch.zeros(2, 8)], ids=["one row", "zeros"])
def test_a_poor_example(batch: Tensor) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(mlp(), nn.BatchNorm1d(4), nn.Linear(4, 2))
        assert [w.name for w in esper.sites(model, batch) if not w.refused] == ["0.a", "0.b"]


def test_a_compiled_model() -> None:
    model: Any = torch.compile(mlp(), backend="eager")
    assert answer(esper.sites(model, ROWS)) == {"a": (6, 13, "a >> b")}


def test_a_frozen_model() -> None:
    model = mlp().requires_grad_(False)
    assert answer(esper.sites(model, ROWS)) == {"a": (6, 13, "a >> b")}


def test_bad_input() -> None:
    with pytest.raises(
        esper.ConfigError, match=r"model\(batch\) fails on the example in evaluation"
    ):
        esper.sites(mlp(), torch.ones(3, 7))
    with pytest.raises(esper.ConfigError, match=r"loss_fn\(model, batch\) fails .* Give a batch"):
        esper.sites(mlp(), ROWS, loss_fn=loss)
    with pytest.raises(esper.ConfigError, match="'0' is a LazyLinear that is not initialised"):
        esper.sites(nn.Sequential(nn.LazyLinear(3)), ROWS)


def test_a_model_without_layers() -> None:
    found = esper.sites(nn.ReLU(), ROWS)
    assert len(found) == 0
    assert str(found) == "site  units    cost  grows with\n0 of 0 widths can grow"
