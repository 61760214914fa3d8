"""How the gradient policy shares the budget out, worked out by hand."""

from typing import Any

import pytest

from esper.contracts.config import Growth
from esper.contracts.health import HealthSignal
from esper.services.tamiyo.policies import LayerGrowth, Situation
from esper.services.tamiyo.policies.base import Promises
from esper.services.tamiyo.policies.gradient import GradientPolicy

PRICES = {"a": 10, "b": 20}
SPECTRA: Promises = {"a": {"lora": (3.0, 1.0, 0.1)}, "b": {"lora": (8.0, 1.0)}}
"""For its price, in order: b .4, a .3, a .1, b .05, a .01."""


def situation(promises: Promises = SPECTRA, *, active: int = 0, **facts: Any) -> Situation:
    return Situation(
        **{
            "epoch": 5,
            "losses": (1.0,),
            "signals": [
                HealthSignal(layer_name=n, epoch=5, gradient_rms=1.0, input_rms=2.0) for n in PRICES
            ],
            "records": {
                n: LayerGrowth(
                    smallest_kernel=p,
                    roomy_kernel=p,
                    active=active * (n == "a"),
                    kinds={} if active and n == "a" else {"lora": p},
                )
                for n, p in PRICES.items()
            },
            "promises": lambda: promises,
            **facts,
        }
    )


def policy(budget: int, **settings: Any) -> GradientPolicy:
    return GradientPolicy(Growth(budget=budget, **{"kernel_share": 1.0, **settings}))


@pytest.mark.parametrize(
    ("budget", "first", "parameters", "promise"),
    [
        (19, "a", 10, 1.0),  # b's rank is beyond the budget; so is a second one of a
        (29, "b", 20, 1.0),
        (30, "b", 20, 8 / 11),
        (40, "b", 20, 8 / 12),
        (60, "b", 40, 9 / 13),
        (999, "b", 40, 9 / 13.1),
    ],
)
def test_ranks_are_bought_by_singular_value_for_its_price(
    budget: int, first: str, parameters: int, promise: float
) -> None:
    request, _ = policy(budget).ask(situation())
    assert request is not None
    assert (str(request.site), request.kernel_budget) == (first, parameters)
    assert request.urgency == pytest.approx(promise)


def test_the_second_site_gets_the_rest() -> None:
    rest = situation(active=1, used=20, under_way=20)
    request, reason = policy(60, max_active=9).ask(rest)
    assert request is not None
    assert (str(request.site), request.kernel_budget) == ("b", 40)
    assert reason.startswith("layer b gets 40 of 40 parameters (lora), for 100% of the gradient")


@pytest.mark.parametrize(
    ("budget", "first", "second"),
    [(20, ("a", "lora", 20), None), (25, ("a", "lora", 20), ("a", "bias", 5)),
     (9, ("a", "bias", 5), None), (45, ("b", "lora", 20), ("a", "lora", 20))],
)  # fmt: skip
def test_kinds_are_compared_by_what_they_promise_for_their_price(
    budget: int, first: tuple[str, str, int], second: tuple[str, str, int] | None
) -> None:
    """For its price, in order: b's lora .4, a's lora .3, then .1, a's bias .08."""
    of_b = 8.0 if budget == 45 else 0.1
    promises: Promises = {"a": {"lora": (3.0, 1.0, 0.1), "bias": (0.4,)}, "b": {"lora": (of_b,)}}
    kinds, used = {"a": {"lora": 10, "bias": 5}, "b": {"lora": 20}}, 0
    for wanted in (first, second):
        records = {
            name: LayerGrowth(smallest_kernel=min(of.values(), default=None), kinds=of)
            for name, of in kinds.items()
        }
        now = situation(promises, used=used, under_way=used, records=records)
        request, reason = policy(budget, max_active=9).ask(now)
        if wanted is None:
            assert request is None
            break
        assert request is not None
        assert (str(request.site), request.blueprint, request.kernel_budget) == wanted
        assert f"parameters ({request.blueprint}), for" in reason
        del kinds[str(request.site)][request.blueprint]
        used += request.kernel_budget


def test_a_site_without_a_spectrum_promises_gradient_times_input() -> None:
    request, _ = policy(10).ask(situation({"b": {"lora": (8.0,)}}))
    assert request is not None
    assert str(request.site) == "a"


@pytest.mark.parametrize(
    ("used", "under_way", "left"),
    [(0, 0, 25), (5, 5, 20), (25, 0, 25), (20, 0, 30), (45, 20, 5), (50, 0, 50), (95, 0, None)],
)
def test_rounds_double_what_is_there(used: int, under_way: int, left: int | None) -> None:
    """Levels of 25, 50 and 100; one is passed over where it is not half as much again."""
    known = policy(100, kernel_share=0.25, max_active=9)
    now = situation(
        {"b": {"lora": (9.0,) * 20}}, used=used, under_way=under_way, active=int(under_way > 0)
    )
    request, reason = known.ask(now)
    if left is None:
        assert "the budget is used up" in reason
    elif left < PRICES["b"]:
        assert reason == f"no layer can take a kernel of the {left} parameters that are left"
    else:
        assert f" of {left} parameters" in reason
    assert (request is None) == (left is None or left < PRICES["b"])


@pytest.mark.parametrize(("worth", "goes_on"), [((0.05, 0.02), True), ((0.04, 0.02), False)])
def test_growth_ends_when_a_round_is_not_worth_its_error(
    worth: tuple[float, float], *, goes_on: bool
) -> None:
    now = situation(worth=worth, used=10)
    request, reason = policy(100).ask(now)
    assert (request is not None) == goes_on
    assert goes_on == (not policy(100).over(now))
    if not goes_on:
        assert reason == (
            "more would not help: the last kernels together are worth +0.0400 ± 0.0200 of "
            "held-out loss, not more than 2 standard errors"
        )


def test_a_round_under_way_is_waited_for() -> None:
    settings = {"max_active": 9, "train_epochs": 0, "blend_epochs": 2}
    waiting = policy(100, **settings).ask(situation(active=1, used=10, last_graft_epoch=4))
    assert waiting == (None, "1 kernel(s) of a round are under way")
