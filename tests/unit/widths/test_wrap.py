"""``esper.wrap(..., widen=...)``: what it does, and the sentences of what it does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import esper
from esper.contracts.seeds import SeedState
from esper.execution.surgery import seeded_modules
from tests.unit.services.small_run import settings
from tests.unit.widths.grown import grow, widths
from tests.unit.widths.models import mlp
from tests.unit.widths.test_found import ROWS


class Spare(nn.Module):
    """A model with a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(8, 6)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())  # type: ignore[no-any-return]


def widen(model: Any, *names: str, **given: Any) -> Any:
    return esper.wrap(model, widen=list(names) or "auto", **{"example": ROWS, **given})


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "unknown": (lambda m: widen(m, "c"), r"unknown width 'c'; known: auto, a, b"),
    "refused": (lambda m: widen(m, "b"), r"width 'b' cannot grow: the model returns it\. print"),
    "one of them": (lambda m: widen(m, "a", "b"), r"width 'b' cannot grow: the model returns it"),
    "no match": (lambda m: widen(m, "*.c"), r"unknown width '\*\.c'; known: auto, a, b"),
    "no example": (
        lambda m: esper.wrap(m, widen="auto"),
        r"widen needs an example.*esper\.wrap\(model, widen='auto', example=batch",
    ),
    "odd example": (
        lambda m: widen(m, example=torch.ones(3, 5)),
        r"model\(batch\) fails on the example .* Give a batch",
    ),
    "not reached": (
        lambda m: widen(m, "spare"),
        r"width 'spare' cannot grow: the example does not reach 'spare'.*; give an example",
    ),
    "of layers": (
        lambda m: widen(m, "a", seeds=["lowrank"]),
        r"blueprint 'lowrank' is not for 'a:width'; those that fit: units, units_select, \w+$",
    ),
    "of layers by name": (
        lambda m: widen(m, "a", seeds={"a:width": ["glu"]}),
        r"blueprint 'glu' is not for 'a:width'",
    ),
    "unknown blueprint": (
        lambda m: widen(m, "a", seeds=["unit"]),
        r"unknown blueprint 'unit'; .* Did you mean 'units'\?",
    ),
    "seeds of another": (
        lambda m: widen(m, "a", seeds={"b:width": ["units"]}),
        r"seeds names no blueprints for 'a:width'",
    ),
    "seeds in a string": (lambda m: widen(m, "a", seeds="unit"), r"unknown blueprint 'unit'"),
    "empty": (lambda m: widen(m, "a", seeds=[]), r"'a:width' got no seeds; give at least one"),
    "none": (lambda m: widen(m, seeds_per_layer=0), r"seeds_per_layer is 0; it must be at least 1"),
    "both": (
        lambda m: widen(m, seeds_per_layer=2, seeds=["units"]),
        r"give seeds or seeds_per_layer, not both",
    ),
    "beside a layer": (
        lambda m: esper.wrap(m, ["a"], ["units"]),
        r"'units' is for the widths between layers, not for layer 'a'; widen that",
    ),
    "layer and width": (
        lambda m: widen(m, "a", layers=["b"]),
        r"width 'a' cannot grow: 'b' is wrapped, and a kernel beside it would not grow with it",
    ),
    "no names": (
        lambda m: esper.wrap(m, widen=True, example=ROWS),  # type: ignore[arg-type]
        r"widen is True; give 'auto', or a list of names",
    ),
    "misspelt auto": (lambda m: widen(m, "Auto"), r"unknown width 'Auto'; .* Did you mean 'auto'"),
    "all of them": (lambda m: widen(m, layers=["a"]), r"no width of the model can grow"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_changes_nothing(case: str) -> None:
    call, sentence = BAD[case]
    model = Spare()
    before = repr(model)
    with pytest.raises(esper.ConfigError, match=sentence):
        call(model)
    assert repr(model) == before
    assert not model._load_state_dict_pre_hooks or case in ("layer and width", "all of them")


AGAIN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "twice": (lambda m: widen(m, "a"), r"width 'a' has seeds already; widen each width once"),
    "its layer": (
        lambda m: esper.wrap(m, ["a"]),
        r"layer 'a' has a part in 'a:width', which grows.*; wrap the one or widen the other",
    ),
    "its reader": (lambda m: esper.wrap(m, ["b"]), r"layer 'b' has a part in 'a:width'"),
    "itself": (lambda m: esper.wrap(m, ["a.width"]), r"unknown layer 'a\.width'"),
    "its parts": (lambda m: esper.wrap(m, ["a.*"]), r"'a\.\*', which matches no module"),
}


@pytest.mark.parametrize("case", AGAIN)
def test_what_grows_already(case: str) -> None:
    call, sentence = AGAIN[case]
    model = widen(mlp(), "a")
    before = repr(model)
    with pytest.raises(esper.ConfigError, match=sentence):
        call(model)
    assert repr(model) == before


def test_names_of_one_width_in_several_ways() -> None:
    for names in (("a",), ("a", "a:width"), ("*",), ("a*", "*a")):
        (width,) = widths(widen(mlp(), *names))
        assert width.name == "a:width"
        assert width.seed_blueprints == ("units", "units_select", "units_split")
    (width,) = widths(widen(mlp(), seeds_per_layer=2))
    assert width.seed_blueprints == ("units", "units_select")
    (width,) = widths(widen(mlp(), seeds={"*:width": ["units_split"]}))
    assert width.seed_blueprints == ("units_split",)


def test_layers_and_widths_together() -> None:
    model = nn.Sequential(mlp(), nn.Linear(4, 8), mlp())
    widen(model, "2.a", layers=["0.a"], seeds=["lowrank", "units", "glu"])
    layer, width = seeded_modules(model).values()
    assert (layer.seed_blueprints, width.seed_blueprints) == (("lowrank", "glu"), ("units",))
    found = esper.sites(model, ROWS)
    assert "'0.a' is wrapped" in found["0.a"].refused
    assert [w.name for w in found if not w.refused] == ["0.b", "1", "2.a"]


@pytest.mark.parametrize("widths_first", [True, False])
def test_the_whole_model_and_its_widths(*, widths_first: bool) -> None:
    model = esper.wrap(widen(mlp()), [""]) if widths_first else widen(mlp(), layers=[""])
    assert isinstance(model, esper.KasminaLayer)
    (width,) = widths(model)
    before = model(ROWS)
    kernel = grow(width, to="fossilized")
    width.merge(kernel)
    assert model(ROWS).shape == before.shape
    plain = esper.unwrap(model, discard_grown=True)
    assert torch.equal(plain(ROWS), before)


def test_sites_of_a_model_that_grows() -> None:
    model = widen(mlp())
    (width,) = widths(model)
    assert not esper.sites(model, ROWS)["a"].refused
    kernel = grow(width, to="training")
    assert (esper.sites(model, ROWS)["a"].units, esper.sites(model, ROWS)["a"].refused) == (6, "")
    for state in ("blending", "holding", "fossilized"):
        width.advance(0, SeedState(state))
        found = esper.sites(model, ROWS)["a"]
        assert found.refused == "a kernel of 'a:width' has a part in it"
    width.merge(kernel)
    assert (esper.sites(model, ROWS)["a"].units, esper.sites(model, ROWS)["a"].refused) == (8, "")
    assert "out_features=8" in str(model)
    assert "in_features=8" in str(model)


def tamiyo(model: nn.Module, **growth: Any) -> esper.Tamiyo:
    optimizer = torch.optim.AdamW(model.parameters())
    return esper.Tamiyo(
        model,
        optimizer,
        loss_fn=lambda m, b: m(b).square().mean(1),
        holdout=[ROWS],
        config=settings(**growth),
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: setattr(m, "b", nn.Linear(6, 4)), r"'b' was replaced; wrap the changed model"),
        (
            lambda m: setattr(m.b, "weight", nn.Parameter(torch.ones(4, 7))),
            r"'a:width' cannot grow: since it was wrapped, 'b' was given 7 of 6 places",
        ),
    ],
    ids=["replaced", "reshaped"],
)
def test_a_reader_that_the_user_changed(change: Callable[[Any], None], sentence: str) -> None:
    model = widen(mlp())
    engine = tamiyo(model)
    change(model)
    with pytest.raises(esper.ConfigError, match=sentence):
        tamiyo(model)
    assert "since it was wrapped" in engine.grower.objection("a:width")


def test_a_budget_below_one_unit(caplog: pytest.LogCaptureFixture) -> None:
    engine = tamiyo(widen(mlp()), budget=12)
    assert any("raise it to 13 at least" in message for message in caplog.messages)
    assert engine.used == 0


def test_a_plan_names_the_widths() -> None:
    text = str(tamiyo(widen(mlp()), budget=100).plan())
    assert "a:width" in text


def test_a_batch_norm_is_no_name_of_a_width() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    with pytest.raises(esper.ConfigError, match=r"'1' gives no units; .* widen=\['0'\]"):
        widen(model, "1")
    assert not seeded_modules(model)
