"""Adapting a small frozen network: which layers, how many parameters, and what stays."""

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError, EsperError

Batch = tuple[Tensor, Tensor]


def host(seed: int = 0) -> nn.Module:
    """Three linear layers of LoRA r = 1 sizes 14, 16 and 14, and a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(
            OrderedDict(
                up=nn.Linear(6, 8), act=nn.GELU(), mix=nn.Linear(8, 8), norm=nn.LayerNorm(8)
            )
        )
        body = OrderedDict(encoder=encoder, down=nn.Linear(8, 6), head=nn.Linear(6, 3))
        return nn.Sequential(body)


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    plain: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    mixing = torch.randn(6, 3, generator=torch.Generator().manual_seed(9), **plain)
    inputs = [torch.randn(16, 6, generator=generator, **plain) for _ in range(count)]
    return [(x, (x @ mixing).argmax(1)) for x in inputs]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def there(part: list[Batch], device: str) -> list[Batch]:
    return [(inputs.to(device), targets.to(device)) for inputs, targets in part]


def adapted(
    model: nn.Module,
    steps: int = 16,
    *,
    rate: float = 1e-2,
    make: Any = torch.optim.Adam,
    device: str = "cpu",
    **given: Any,
) -> esper.Tamiyo:
    """The adaptation after so many steps, finished."""
    optimizer = make(model.get_submodule("head").parameters(), lr=rate)
    usual: dict[str, Any] = {"budget": 1.0, "every": 4, "holdout": there(batches(2, 5), device)}
    tamiyo = esper.adapt(model, optimizer=optimizer, loss_fn=loss_fn, **{**usual, **given})
    for batch in there(batches(steps, 1), device):
        optimizer.zero_grad()
        torch.autograd.backward(loss_fn(model, batch).mean())
        optimizer.step()
        tamiyo.on_batch_end(batch)
    tamiyo.finish()
    return tamiyo


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace(".host", ""): value.detach().clone()
        for name, value in model.named_parameters()
        if "head" not in name and "seeds" not in name and "fossils" not in name
    }


def test_kernels_grow_beside_a_host_that_stays_as_it_is() -> None:
    model = host()
    before = frozen(model)
    tamiyo = adapted(model)
    after = frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert 14 <= tamiyo.used <= tamiyo.budget == 44
    assert not torch.equal(model.get_parameter("head.weight"), host().get_parameter("head.weight"))


@pytest.mark.parametrize(
    ("budget", "parameters"), [(0.33, 14), (1.0, 44), (2.5, 110), (30, 30), (None, 352)]
)
def test_a_budget_is_a_share_of_lora_or_a_count(budget: float | None, parameters: int) -> None:
    assert adapted(host(), steps=1, budget=budget).budget == parameters


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("all-linear", ["encoder.up", "encoder.mix", "down"]),
        (["encoder.*"], ["encoder.up", "encoder.mix"]),
        ("*.mix", ["encoder.mix"]),
        ([re.compile(r"(encoder\.)?(up|down)")], ["encoder.up", "down"]),
        (["down"], ["down"]),
    ],
)
def test_layers_by_name_pattern_and_expression(layers: Any, names: list[str]) -> None:
    assert list(adapted(host(), steps=0, layers=layers).layers) == names


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"layers": ["*.dence"]}, "layers has '*.dence', which matches no layer; nearest: "),
        ({"layers": [re.compile("x+")]}, "layers has 'x+', which matches no layer; nearest: "),
        ({"layers": ["encoder.upp"]}, "unknown layer 'encoder.upp'"),
        ({"layers": ["encoder.norm"]}, "layer 'encoder.norm' is a LayerNorm, and kernels of low"),
        ({"layers": ["head"]}, "layer 'head' is in the head"),
        ({"layers": []}, "layers is []; give 'all-linear', or names"),
        ({"layers": None}, "layers is None; give 'all-linear'"),
        ({"layers": [0]}, "layers is [0]; give 'all-linear'"),
        ({"budget": float("nan")}, "budget nan must be a share"),
        ({"budget": float("inf")}, "budget inf must be a share"),
        ({"budget": "0.5"}, "budget '0.5' must be a share"),
        ({"budget": [1]}, "budget [1] must be a share"),
        ({"budget": True}, "budget True must be a share"),
        ({"name": None}, "name None of the adapter must be a text"),
        ({"name": ""}, "name '' of the adapter must be a text"),
        ({"head": "hed"}, "unknown head 'hed'"),
        ({"head": "down"}, "the optimizer holds 'head.weight', which is not in the head"),
        ({"head": ["head", "down"]}, "the optimizer does not hold 'down.weight' of the head"),
        ({"budget": 0.2}, "budget 0.2 is 8 parameters, and one rank of the smallest layer has 14"),
        ({"budget": 13}, "budget 13 is 13 parameters"),
        ({"seeds": ["lorra"]}, "unknown blueprint 'lorra'"),
        ({"config": {"growth": {"evry": 3}}}, "evry"),
        ({"holdout": []}, "holdout has no batches"),
        ({"seeds": ["lora", "glu@1/4"]}, "seed 'glu@1/4': the gradient pass sizes kernels"),
    ],
)
def test_what_is_wrong_is_named_and_the_host_left_alone(given: dict[str, Any], says: str) -> None:
    model = host()
    names = [name for name, _ in model.named_modules()]
    optimizer = torch.optim.Adam(model.get_submodule("head").parameters())
    usual: dict[str, Any] = {"loss_fn": loss_fn, "holdout": batches(1), "budget": 1.0}
    with pytest.raises(EsperError, match=re.escape(says)):
        esper.adapt(model, optimizer=optimizer, **{**usual, **given})
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(torch.ones(1, 6)), host()(torch.ones(1, 6)))


def test_an_optimizer_over_all_parameters_is_named_where_no_layer_is_left() -> None:
    model = host()
    optimizer = torch.optim.Adam(model.parameters())
    given: dict[str, Any] = {"loss_fn": loss_fn, "holdout": batches(2, 5)}
    with pytest.raises(ConfigError, match=r"outside its head; name .*An optimizer over all param"):
        esper.adapt(model, budget=1.0, optimizer=optimizer, **given)


def test_a_host_without_a_head_begins_with_an_empty_optimizer() -> None:
    model = host()
    optimizer = torch.optim.Adam([{"params": []}], lr=1e-2)
    given: dict[str, Any] = {"loss_fn": loss_fn, "holdout": batches(2, 5)}
    tamiyo = esper.adapt(model, ["encoder.*"], optimizer=optimizer, budget=1.0, every=2, **given)
    for batch in batches(6, 1):
        loss = loss_fn(model, batch).mean()
        if loss.requires_grad:  # before there are kernels nothing is trained
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        tamiyo.on_batch_end(batch)
    tamiyo.finish()
    assert tamiyo.used > 0
    with esper.disabled(model):
        assert torch.equal(model(torch.ones(1, 6)), host()(torch.ones(1, 6)))


def test_without_a_budget_kernels_are_judged_beside_each_other() -> None:
    model = host()
    tamiyo = adapted(model, steps=30, budget=None, config={"growth": {"blend_epochs": 3}})
    ended = [event for event in tamiyo.events() if event.kind == "outcome"]
    assert ended
    assert tamiyo.grafts.judge.worth is not None
    assert not tamiyo.grafts.grafts
    assert tamiyo.used == sum(layer.grown_parameters for layer in tamiyo.layers.values())


def test_an_epoch_ends_by_itself_after_so_many_batches() -> None:
    model = host()
    optimizer = torch.optim.Adam(model.get_submodule("head").parameters())
    given: dict[str, Any] = {"loss_fn": loss_fn, "holdout": batches(1), "budget": 1.0, "every": 3}
    tamiyo = esper.adapt(model, optimizer=optimizer, **given)
    reports = [tamiyo.on_batch_end(batch) for batch in batches(7)]
    ended = {at: one.epoch for at, one in enumerate(reports) if one is not None}
    assert ended == {2: 0, 5: 1}
    assert reports[2] is not None
    assert len(reports[2].decisions) > 1


def test_a_wrong_name_of_an_adapter() -> None:
    model = host()
    adapted(model)
    with pytest.raises(ConfigError, match="has an adapter 'default' already"):
        adapted(model)
    with pytest.raises(ConfigError, match="unknown adapter 'defalt'"):
        esper.set_adapter(model, "defalt")


def test_a_loss_that_is_not_finite_is_told_in_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = torch.optim.Adam([{"params": []}])
    model = host()
    given: dict[str, Any] = {"holdout": batches(1), "budget": 1.0, "every": 1}
    tamiyo = esper.adapt(
        model, optimizer=optimizer, loss_fn=lambda m, b: loss_fn(m, b) * float("nan"), **given
    )
    tamiyo.on_batch_end(batches(1)[0])
    told = [record for record in caplog.records if "choice of a graft" in record.message]
    assert len(told) == 1
    assert "is not finite, and promises nothing; see that loss_fn" in told[0].message
    assert not told[0].exc_info


class PartOfPeft(nn.Module):
    """A linear layer as peft wraps it: layers inside that it calls, and the attribute they have."""

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return y


def with_peft(*names: str) -> nn.Module:
    model = host()
    for name in names:
        parent, _, own = name.rpartition(".")
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        setattr(model.get_submodule(parent), own, PartOfPeft(base))
    return model


def test_layers_inside_those_of_peft_are_left_out() -> None:
    model = with_peft("encoder.mix")
    assert list(adapted(model, steps=0).layers) == ["encoder.up", "down"]
    model = with_peft("encoder.mix")
    assert list(adapted(model, steps=0, layers=["**"]).layers) == ["encoder.up", "down"]


def test_layers_inside_those_of_peft_are_refused_by_name() -> None:
    model = with_peft("encoder.mix")
    with pytest.raises(ConfigError, match=r"'encoder\.mix\.base_layer' is a part of an adapter"):
        adapted(model, layers=["down", "encoder.mix.base_layer"])
    with pytest.raises(
        ConfigError, match=r"no nn\.Linear outside its head and the adapters of peft"
    ):
        adapted(with_peft("encoder.up", "encoder.mix", "down"))
