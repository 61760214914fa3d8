"""Heads of attention as a width: blueprints that fit, first rows, and a whole life."""

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.blueprints import BLUEPRINTS, fitting
from esper.execution.surgery import seeded_modules
from esper.widths.first_rows import choose_rows
from esper.widths.widened import spread
from tests.unit.services.small_run import KEPT, SmallRun, batches, loss_fn, settings, teacher
from tests.unit.widths import models
from tests.unit.widths.grown import grow, kernel_of, widths
from tests.unit.widths.models import Written
from tests.unit.widths.test_found import TOKENS
from tests.unit.widths.test_refused import width_of_the_input


def block() -> Any:
    """Attention of 2 heads and a feed-forward part, beside the stream."""
    inner = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))
    layers = {"attn": models.attention(num_heads=2, embed_dim=8), "mlp": inner}
    return Written(lambda m, x: (y := x + m.attn(x)) + m.mlp(y), **layers)


def widen(model: Any, **given: Any) -> Any:
    return esper.wrap(model, widen=given.pop("widen", "auto"), example=TOKENS, **given)


def test_every_width_gets_the_blueprints_that_fit_it() -> None:
    heads, units = widths(widen(block()))
    assert heads.seed_blueprints == ("heads", "heads", "heads")
    assert units.seed_blueprints == ("units", "units_select", "units_split")
    assert heads.spec is not None
    assert fitting(heads.spec) == ["heads"]
    assert "blueprint 'units' is for width layers" in BLUEPRINTS.create("units").objection(
        heads.spec
    )
    given = widths(widen(block(), seeds=["units", "heads", "units_split"]))
    assert [w.seed_blueprints for w in given] == [("heads",), ("units", "units_split")]
    (alone,) = widths(widen(block(), seeds={"*:width": ["units"], "**:width": ["units"]}))
    assert alone.name == "mlp.0:width"


@pytest.mark.parametrize("names", ["auto", ["attn.q"]])
def test_no_blueprint_that_fits(names: Any) -> None:
    model = block() if names != "auto" else models.attention(num_heads=2)
    sentence = r"none of the blueprints given fits '(attn\.)?q:width', whose units are heads; those"
    with pytest.raises(esper.ConfigError, match=sentence):
        widen(model, widen=names, seeds=["units"])
    assert not seeded_modules(model)


def test_attributes_follow_the_heads() -> None:
    model = widen(block())
    heads = widths(model)[0]
    seen: list[tuple[int, int]] = []
    model.attn.out.register_forward_pre_hook(
        lambda *_: seen.append((model.attn.num_heads, model.attn.embed_dim))
    )
    kernel = grow(heads, units=2, to="fossilized")
    model(TOKENS)
    assert seen == [(4, 16)]
    assert (model.attn.num_heads, model.attn.embed_dim) == (2, 8)
    heads.merge(kernel)
    assert (model.attn.num_heads, model.attn.embed_dim) == (4, 16)
    assert esper.sites(model, TOKENS)["attn.q"].units == 4
    plain = esper.unwrap(model, discard_grown=True)
    assert (plain.attn.num_heads, plain.attn.embed_dim) == (2, 8)


def test_an_attribute_of_another_size_stays() -> None:
    model = widen(models.attention(inner=12, num_heads=2, embed_dim=8, all_head_size=12))
    (heads,) = widths(model)
    heads.merge(grow(heads, units=1, to="fossilized"))
    assert (model.num_heads, model.embed_dim, model.all_head_size) == (3, 8, 18)


def test_two_attentions_that_read_one_attribute_grow_together() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        def attend(name: str) -> Tensor:
            layers = (m.get_submodule(f"{name}_{part}") for part in "qkv")
            q, k, v = (f(x).unflatten(-1, (m.n_heads, -1)).transpose(1, 2) for f in layers)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        return m.a_out(attend("a")) + m.b_out(attend("b"))

    layers = {f"{a}_{b}": nn.Linear(8, 8) for a in "ab" for b in ("q", "k", "v", "out")}
    model: Any = Written(forward, **layers)
    model.n_heads = 2
    both = esper.sites(model, TOKENS)["a_q"]
    assert (both.refused, both.units, both.cost) == ("", 2, 2 * (3 * 36 + 32))
    assert both.consumers == ("a_out", "b_out")


def test_what_two_attentions_cannot_do_no_other_is_tried_with() -> None:
    torch.manual_seed(0)
    mlps = [nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(3)]
    pairs = [(mlp, width_of_the_input()) for mlp in mlps]
    model = nn.Sequential(*(layer for pair in pairs for layer in pair))
    found = esper.sites(model, TOKENS)
    refused = {w.name: w.refused for w in found}
    first = "the model fails with one more unit: shape '[3, 5, 8]' is invalid"
    assert refused["1.qkv"].startswith(first)
    assert refused["3.qkv"].startswith(first)
    assert refused["5.qkv"].startswith(f"as in '3.qkv', {first}")
    able = [w.name for w in found if not w.refused]
    assert able == ["0.0", "0.2", "1.out", "2.0", "2.2", "3.out", "4.0", "4.2"]


@pytest.mark.parametrize("wrong", [(1,), (0, 3), (0, 2, 4)])
def test_an_attention_that_works_is_not_refused_with_others_of_its_class(
    wrong: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    works = [models.attention(num_heads=2, embed_dim=8, layer=index) for index in range(6)]
    for index in wrong:
        works[index] = width_of_the_input(layer=index)
    found = esper.sites(nn.Sequential(*works), TOKENS)
    heads = {name[0]: w.refused for w in found for name in w.producers if name[2] == "q"}
    assert {int(name) for name, refused in heads.items() if refused} == set(wrong)


def test_first_rows_have_the_size_of_the_hosts() -> None:
    model = widen(models.attention(num_heads=2))
    with torch.no_grad():
        model.q.weight.mul_(7.0)
    (heads,) = widths(model)
    kernel = kernel_of(heads)
    heads.load_kernel(0, kernel)
    choose_rows(heads, 0, model, lambda m, x: m(x).square().mean((1, 2)), [TOKENS])
    made: Any = kernel.module
    assert spread(made.producer0.weight) == pytest.approx(spread(model.q.weight))
    assert spread(made.producer1.weight) == pytest.approx(spread(model.k.weight))
    assert not made.producer0.bias.any()
    assert not made.consumer3.weight.any()


# --- a whole life ---------------------------------------------------------------------------------


def reader(seed: int = 0) -> nn.Module:
    """Three tokens of two features each, to three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attn = models.attention(num_heads=2, embed_dim=8)
        layers = OrderedDict(
            apart=nn.Unflatten(1, (3, 2)), into=nn.Linear(2, 8), attn=attn, act=nn.Tanh()
        )
        return nn.Sequential(layers | {"flat": nn.Flatten(), "out": nn.Linear(24, 3)})


@pytest.mark.trains
def test_heads_grow_are_kept_and_saved() -> None:
    grows = settings(train_epochs=1, blend_epochs=1, budget=1500, kernel_budget=500)
    run = SmallRun(model=reader(), config=grows, widen=["attn.q"], worth=(KEPT,))
    model: Any = run.model
    run.run(8)
    assert model.attn.num_heads > 2
    assert model.attn.embed_dim == model.attn.q.out_features == 4 * model.attn.num_heads
    x = run.holdout[0][0]
    after = model.eval()(x)
    hard: Any = esper.harden(model)
    torch.testing.assert_close(hard(x), after)
    assert not any("esper" in type(m).__module__ for m in hard.modules())
    other: Any = reader(7)
    esper.wrap(other, widen=["attn.q"], example=batches(teacher(32, seed=1))[0], loss_fn=loss_fn)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other.eval()(x), after)
    assert other.attn.num_heads == model.attn.num_heads
    again = SmallRun(model=reader(7), config=grows, widen=["attn.q"], worth=(KEPT,))
    again.model.load_state_dict(model.state_dict())
    again.engine.load_state_dict(run.engine.state_dict())
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    again.run(14, first=8)
    run.run(14, first=8)
    held = [p for group in again.optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, again.model.parameters()))
    assert [w.units for w in widths(again.model)] == [w.units for w in widths(run.model)]
