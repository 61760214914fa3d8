"""Where and when to grow, worked out by hand."""

from math import inf, nan
from typing import Any

import pytest
from typing_extensions import override

from esper.contracts.config import Growth
from esper.contracts.errors import SelectionError
from esper.contracts.health import GraftRequest, HealthSignal
from esper.contracts.site import Site
from esper.services.tamiyo.policies import LayerGrowth, Policy, Situation
from esper.services.tamiyo.policies.heuristic import HeuristicPolicy, loss_trend

FLAT = (1.0, 0.99, 0.98, 0.97)


def signal(name: str, gradient: float | None, reads: float | None = 1.0) -> HealthSignal:
    return HealthSignal(layer_name=name, epoch=5, gradient_rms=gradient, input_rms=reads)


def record(**facts: Any) -> LayerGrowth:
    return LayerGrowth(**{"smallest_kernel": 10, "roomy_kernel": 30, **facts})


def situation(**facts: Any) -> Situation:
    usual: dict[str, Any] = {
        "epoch": 5,
        "losses": FLAT,
        "signals": [signal("a", 2.0, 3.0), signal("b", 1.0, 2.0)],
        "records": {"a": record(), "b": record()},
    }
    return Situation(**{**usual, **facts})


def policy(**settings: Any) -> HeuristicPolicy:
    return HeuristicPolicy(Growth(**{"budget": 800, **settings}))


@pytest.mark.parametrize(("epoch", "asked"), [(5, True), (6, False), (9, False), (12, False)])
def test_nothing_begins_that_could_not_be_judged(epoch: int, asked: bool) -> None:
    """Begun at the end of epoch 5, it is judged at the end of epoch 9, the last of ten."""
    known = policy(epochs=10, train_epochs=3)
    request, reason = known.ask(situation(epoch=epoch))
    assert (request is not None) == asked
    assert asked or f"a graft takes 4 epochs, and {max(0, 9 - epoch)} are left" in reason
    assert policy(train_epochs=3).ask(situation(epoch=epoch))[0] is not None


@pytest.mark.parametrize(
    ("used", "settings", "why"),
    [
        (0, {}, ""),
        (750, {}, ""),
        (
            751,
            {},
            "the budget is used up: 49 of 800 parameters are left, and a kernel is worth 100",
        ),
        (
            791,
            {"kernel_budget": 9},
            "the budget is used up: 9 of 800 parameters are left, and the smallest",
        ),
        (0, {"epochs": 8}, "too late: a graft takes 3 epochs, and 2 are left"),
        (0, {"epochs": 9}, ""),
    ],
)
def test_growth_is_over_once_nothing_that_it_would_ask_for_can_begin(
    used: int, settings: dict[str, Any], why: str
) -> None:
    assert policy(**settings).over(situation(used=used)).startswith(why)
    assert bool(policy(**settings).over(situation(used=used))) == bool(why)


def test_what_no_pass_has_reached_may_still_grow() -> None:
    class Sure(Policy):
        name = "sure"

        @override
        def decide(self, now: Situation) -> tuple[GraftRequest | None, str]:
            return None, "never"

    unknown = {"a": record(), "b": LayerGrowth(objection="was not called yet")}
    asked = Sure(Growth(budget=100))
    assert asked.over(situation(used=91)) == (
        "the budget is used up: 9 of 100 parameters are left, and the smallest kernel needs 10"
    )
    assert not asked.over(situation(used=90))
    assert not asked.over(situation(used=91, records=unknown))


def why_not(now: Situation, **settings: Any) -> str:
    request, reason = policy(**settings).decide(now)
    assert request is None
    return reason


@pytest.mark.parametrize(
    ("name", "budget", "says"),
    [("c", 10, "in layer 'c'"), ("a", 61, "asked for 61 parameters"), ("a", 0, "asked for 0")],
)
def test_a_policy_that_asks_for_what_it_may_not_have_is_found_out(
    name: str, budget: int, says: str
) -> None:
    class Stubborn(Policy):
        name = "stubborn"

        @override
        def decide(self, now: Situation) -> tuple[GraftRequest | None, str]:
            return asked, asked.reason

    asked = GraftRequest(
        site=Site(name), epoch=5, urgency=1.0, kernel_budget=budget, reason="because"
    )
    with pytest.raises(SelectionError, match=f"{says}.*60 are left.*mistake in the policy"):
        Stubborn(Growth(budget=100)).ask(situation(used=40))


# --- where ----------------------------------------------------------------------------------------


def test_among_layers_of_equally_many_grafts_the_largest_gradient_times_input_grows() -> None:
    request, reason = policy().decide(situation())
    assert request is not None
    assert request.site.name == "a"
    assert request.urgency == pytest.approx(6 / 8)
    assert request.kernel_budget == 100
    assert request.epoch == 5
    assert request.reason == reason
    assert reason.startswith(
        "layer a has had fewest grafts, 0 (0 kept), and 75% of gradient x input"
    )
    assert reason.endswith("over 2 layer(s) that can grow; the held-out loss falls 1.0% an epoch")


@pytest.mark.parametrize("kept", [0, 2])
def test_the_layer_of_the_fewest_grafts_grows_whatever_was_kept(kept: int) -> None:
    records = {"a": record(kept=kept, judged=3), "b": record(kept=2, judged=2)}
    request, _ = policy().decide(situation(records=records))
    assert request is not None
    assert request.site.name == "b"
    assert request.urgency == pytest.approx(2 / 8)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"active": 1}, "a is growing"),
        ({"smallest_kernel": None}, "a fits none of its blueprints"),
        ({"smallest_kernel": 101}, "a needs 101"),
    ],
)
def test_a_layer_that_cannot_grow_is_passed_over(facts: dict[str, Any], why: str) -> None:
    records = {"a": record(**facts), "b": record()}
    request, _ = policy(kernel_budget=100).decide(situation(records=records))
    assert request is not None
    assert request.site.name == "b"
    both = situation(records={"a": record(**facts), "b": record(active=1)})
    assert why_not(both, kernel_budget=100, max_active=3) == (
        f"no layer can grow now: {why}, b is growing"
    )


@pytest.mark.parametrize("gradient", [None, nan, inf])
def test_a_layer_without_a_finite_gradient_is_passed_over(gradient: float | None) -> None:
    signals = [signal("a", gradient), signal("b", 1e-9)]
    request, _ = policy().decide(situation(signals=signals))
    assert request is not None
    assert request.site.name == "b"
    alone = situation(signals=signals[:1])
    assert why_not(alone) == "no layer can grow now: a has no finite gradient"


def test_layers_without_any_promise_share_the_urgency() -> None:
    request, _ = policy().decide(situation(signals=[signal("a", 0.0), signal("b", 0.0)]))
    assert request is not None
    assert request.urgency == 0.5


# --- when -----------------------------------------------------------------------------------------


def test_it_warms_up() -> None:
    assert why_not(situation(epoch=1), warmup_epochs=3) == "warming up until epoch 2"
    assert policy(warmup_epochs=3).decide(situation(epoch=2))[0] is not None


def test_it_cools_down() -> None:
    now = situation(epoch=9, last_graft_epoch=7)
    assert why_not(now, cooldown_epochs=3) == "cooling down for 1 more epoch(s)"
    assert policy(cooldown_epochs=2).decide(now)[0] is not None


def test_it_keeps_to_the_limit_over_all_layers() -> None:
    now = situation(records={"a": record(active=1), "b": record(active=1), "c": record()})
    assert why_not(now, max_active=2) == "2 graft(s) under way, which is the limit"


def test_it_lets_the_host_learn_by_itself_first() -> None:
    now = situation(losses=(1.0, 0.7, 0.49))
    assert why_not(now, plateau_threshold=0.2) == (
        "the host still learns by itself: the held-out loss falls 30.0% an epoch"
    )
    assert policy(plateau_threshold=0.31).decide(now)[0] is not None


@pytest.mark.parametrize("losses", [(1.0,), (1.0, nan), (1.0, inf, 0.5)])
def test_it_waits_while_the_trend_is_not_known(losses: tuple[float, ...]) -> None:
    assert "is not known" in why_not(situation(losses=losses))


# --- the budget -----------------------------------------------------------------------------------


def test_an_eighth_of_the_budget_is_raised_until_every_blueprint_has_room() -> None:
    assert policy(budget=800).kernel_budget({"a": record(roomy_kernel=30)}) == 100
    assert policy(budget=160).kernel_budget({"a": record(roomy_kernel=30)}) == 30
    assert policy(budget=20).kernel_budget({"a": record(roomy_kernel=30)}) == 20
    assert policy(budget=800, kernel_budget=7).kernel_budget({"a": record()}) == 7


def test_the_rest_of_the_budget_bounds_a_kernel() -> None:
    request, _ = policy().decide(situation(used=730))
    assert request is not None
    assert request.kernel_budget == 70


def test_it_says_when_the_budget_is_used_up() -> None:
    assert why_not(situation(used=780)) == (
        "the budget is used up: 20 of 800 parameters are left, and a kernel is worth 100"
    )


@pytest.mark.parametrize("budget", [0, 9])
def test_it_says_when_the_budget_is_too_small_for_any_kernel(budget: int) -> None:
    assert why_not(situation(), budget=budget) == (
        f"the budget is too small: {budget} of {budget} parameters are left, and the smallest "
        "kernel needs 10"
    )


def test_it_says_when_no_blueprint_fits_anywhere() -> None:
    nothing = record(smallest_kernel=None, roomy_kernel=0)
    reason = why_not(situation(records={"a": nothing, "b": nothing}))
    assert reason == "no blueprint of any seed fits its layer"


# --- the trend ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "window", "trend"),
    [
        ([4.0, 1.0], 1, -0.75),
        ([4.0, 2.0, 1.0], 2, -0.5),
        ([9.0, 4.0, 2.0, 1.0], 2, -0.5),  # what is older than the window has no part
        ([1.0, 2.0], 5, 1.0),
        ([-10.0, -12.0, -15.0], 2, -2.5 / 15),  # a log-likelihood: its change over its size
        ([1.0, 0.0, -1.0], 2, -1.0),
        ([0.0, 0.0], 1, 0.0),
    ],
)
def test_the_trend_is_the_change_per_epoch_as_a_share(
    losses: list[float], window: int, trend: float
) -> None:
    assert loss_trend(losses, window) == pytest.approx(trend)
