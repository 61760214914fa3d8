"""A wrapped layer takes writes as the plain layer does."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import esper
from esper.contracts.seeds import SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.side_effect_free import side_effect_free
from esper.execution.surgery import kasmina_layers

X = torch.linspace(-1, 1, 12).view(3, 4)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))


def wrapped() -> tuple[nn.Module, KasminaLayer]:
    model = esper.wrap(plain(), ["0"], seeds_per_layer=2)
    return model, kasmina_layers(model)["0"]


def halve(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() / 2)


def drop_bias(layer: Any) -> None:
    layer.bias = None


def replace_bias(layer: Any) -> None:
    del layer.bias
    layer.register_parameter("bias", nn.Parameter(torch.ones(5)))


def pruned(layer: Any, amount: float = 0.5) -> None:
    prune.l1_unstructured(layer, "weight", amount=amount)  # type: ignore[no-untyped-call]


def pruned_twice(layer: Any) -> None:
    pruned(layer, 0.25)
    pruned(layer, 0.25)


def prune_and_keep(layer: Any) -> None:
    pruned(layer)
    prune.remove(layer, "weight")  # type: ignore[no-untyped-call]


def norm_and_remove(layer: Any) -> None:
    parametrizations.weight_norm(layer)
    parametrize.remove_parametrizations(layer, "weight")


CHANGES: dict[str, Callable[[Any], object]] = {
    "weight": halve,
    "no bias": drop_bias,
    "registered": replace_bias,
    "by hand": lambda layer: layer._parameters.__setitem__("bias", nn.Parameter(torch.ones(5))),
    "weight_norm": parametrizations.weight_norm,
    "both": lambda layer: [parametrizations.weight_norm(layer, n) for n in ("weight", "bias")],
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "norm removed": norm_and_remove,
    "old weight_norm": torch.nn.utils.weight_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
    "pruned": pruned,
    "pruned twice": pruned_twice,
    "pruned for good": prune_and_keep,
    "hook": lambda layer: layer.register_forward_hook(lambda _m, _x, y: y * 2),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_to_the_wrapped_layer_is_one_to_its_host(change: str) -> None:
    control, (model, layer) = plain(), wrapped()
    for target in (control[0], layer):
        torch.manual_seed(1)
        CHANGES[change](target)
    for each in (control, model):
        sgd = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(3):
            sgd.zero_grad()
            each(X).square().mean().backward()
            sgd.step()
    assert torch.equal(control(X), model(X))
    theirs = {n.replace("host.", ""): p for n, p in model.named_parameters()}
    ours = dict(control.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(p, theirs[n]) for n, p in ours.items())


@pytest.mark.parametrize("change", ["weight_norm", "both", "spectral_norm", "pruned"])
def test_what_was_changed_lives_on_when_the_layer_grows_and_goes(change: str) -> None:
    model, layer = wrapped()
    CHANGES[change](layer)
    layer.load_kernel(0, nn.Linear(4, 5))
    layer.advance(0, SeedState.TRAINING)
    layer.advance(0, SeedState.BLENDING)
    layer.set_alpha(0, 0.5)
    model.eval()
    with torch.no_grad():  # so that what prune recomputes can be copied
        y = model(X)
        assert torch.equal(copy.deepcopy(model)(X), y)
        hard = esper.harden(model)
        assert torch.equal(hard(X), y)
        for each in (model, hard):
            for name, p in each.named_parameters():
                if "host" in name:
                    p.mul_(2)
        y = model(X)
        assert torch.equal(hard(X), y)
        layer.unload(0)
        y = model(X)
        assert torch.equal(esper.unwrap(model)(X), y)


def test_tying_again_ties_the_host() -> None:
    model, layer = wrapped()
    layer.weight = model.get_parameter("2.weight")
    assert layer.host.weight is model.get_parameter("2.weight")
    assert len(list(model.parameters())) == 3


def test_a_flag_is_the_hosts_and_an_attribute_of_the_layer_its_own() -> None:
    model = esper.wrap(nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), ["0"], ["lowrank"])
    layer = kasmina_layers(model)["0"]
    assert not layer.mutates_input
    layer.inplace = True
    assert vars(layer.host)["inplace"]
    assert layer.mutates_input
    layer.spec, layer.tag = None, "mine"
    assert layer.host.tag == "mine"
    assert "spec" not in vars(layer.host)
    layer.register_buffer("seen", torch.zeros(2))
    assert "0.host.seen" in model.state_dict()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=False)[0]
    read.seen = torch.ones(2)
    assert torch.equal(read.host.seen, torch.ones(2))
    assert torch.equal(layer.seen, torch.zeros(2))


def test_wrapping_and_growing_write_nothing_into_the_host() -> None:
    held = set(vars(plain()[0]))
    model, layer = wrapped()
    layer.rename("fc")
    layer.stated_layout = "BF"
    assert set(vars(layer.host)) == held
    assert set(layer.OWN) >= {name for name in vars(layer) if not name.startswith("_")}
    assert layer.stated_layout == "BF"
    assert not hasattr(model, "stated_layout")


def test_a_parametrized_layer_keeps_what_it_learns_in_a_pass_on_the_side() -> None:
    model, layer = wrapped()
    parametrizations.weight_norm(layer)
    with side_effect_free(model):
        layer.mutates_input = True
    assert layer.mutates_input
