"""Laws of every policy. Subclass with a fixture ``make`` that builds one from settings.

```python
class TestMine(PolicyLaws):
    @pytest.fixture
    def make(self):
        return Mine                      # called as make(growth=Growth(...), seed=0)
```
"""
# ruff: noqa: D102 (the name of a law is what it says)

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from math import inf, nan
from random import Random  # noqa: TID251 (the laws bring their own, seeded, world)

from esper.contracts.config import Growth
from esper.contracts.health import GraftRequest, HealthSignal
from esper.services.tamiyo.policies.base import LayerGrowth, Policy, Situation

Make = Callable[..., Policy]

LAYERS = ("fc1", "fc2", "encoder.0")
EPOCHS = 40
GROWTH = Growth(budget=500, kernel_budget=60)


class PolicyLaws:
    """Laws of a policy, over runs that it decides on."""

    def test_a_request_or_a_reason(self, make: Make) -> None:
        for seed in range(4):
            for now, request, reason in _run(make(growth=GROWTH, seed=seed), seed):
                assert reason
                assert "\n" not in reason
                if request is not None:
                    assert request.reason == reason
                    assert request.epoch == now.epoch
                    assert 0 <= request.urgency <= 1

    def test_asks_for_a_layer_that_it_was_shown(self, make: Make) -> None:
        for seed in range(4):
            for now, request, _ in _run(make(growth=GROWTH, seed=seed), seed):
                shown = {signal.layer_name for signal in now.signals}
                assert request is None or str(request.site) in shown

    def test_never_exceeds_the_budget(self, make: Make) -> None:
        for seed in range(8):
            budget = 37 * seed
            policy = make(growth=Growth(budget=budget), seed=seed)
            for now, request, _ in _run(policy, seed):
                assert request is None or 0 < request.kernel_budget <= budget - now.used

    def test_asks_for_something_in_the_end(self, make: Make) -> None:
        requests = [request for _, request, _ in _run(make(growth=GROWTH, seed=0), 0)]
        assert any(requests)

    def test_asks_for_nothing_once_growth_is_over(self, make: Make) -> None:
        for seed in range(4):
            policy, over = make(growth=Growth(budget=150, kernel_budget=60), seed=seed), ""
            for now, request, _ in _run(policy, seed):
                assert not (over and request)
                over = over or ("" if _active(now) else policy.over(now))

    def test_equal_seed_equal_decisions(self, make: Make) -> None:
        for seed in range(3):
            one, two = (list(_run(make(growth=GROWTH, seed=seed), 5)) for _ in range(2))
            assert one == two

    def test_deciding_changes_no_situation(self, make: Make) -> None:
        policy = make(growth=GROWTH, seed=0)
        for now in _situations(Random(3)):
            before = deepcopy(now)
            policy.decide(now)
            assert now == before

    def test_goes_on_after_json(self, make: Make) -> None:
        situations = list(_situations(Random(4)))
        policy = make(growth=GROWTH, seed=1)
        for now in situations[: EPOCHS // 2]:
            policy.decide(now)
        again = make(growth=GROWTH, seed=1)
        again.load_state_dict(json.loads(json.dumps(policy.state_dict())))
        for now in situations[EPOCHS // 2 :]:
            assert policy.decide(now) == again.decide(now)

    def test_an_ill_or_unmeasured_host_is_no_trouble(self, make: Make) -> None:
        for value in (nan, inf, -inf, None, 0.0):
            signals = [
                HealthSignal(layer_name=name, epoch=9, gradient_rms=value, input_rms=value)
                for name in LAYERS
            ]
            losses = [1.0, 1.0, 1.0 if value is None else value]
            records = dict.fromkeys(LAYERS, LayerGrowth(smallest_kernel=5, roomy_kernel=20))
            now = Situation(epoch=9, losses=losses, signals=signals, records=records)
            request, reason = make(growth=GROWTH, seed=0).decide(now)
            assert reason
            assert request is None or str(request.site) in LAYERS

    def test_nothing_to_grow_is_a_reason(self, make: Make) -> None:
        now = next(_situations(Random(0)))
        request, reason = make(growth=GROWTH, seed=0).decide(replace(now, signals=(), records={}))
        assert request is None
        assert reason


def _active(now: Situation) -> int:
    return sum(record.active for record in now.records.values())


def _run(policy: Policy, seed: int) -> Iterator[tuple[Situation, GraftRequest | None, str]]:
    """A run in which every request is granted and ends two epochs later."""
    random = Random(seed)
    used, last, grafts, ends = 0, None, dict.fromkeys(LAYERS, 0), dict.fromkeys(LAYERS, -1)
    for now in _situations(random):
        records = {
            name: LayerGrowth(
                kept=grafts[name] // 2,
                judged=grafts[name],
                active=int(ends[name] >= now.epoch),
                smallest_kernel=record.smallest_kernel,
                roomy_kernel=record.roomy_kernel,
            )
            for name, record in now.records.items()
        }
        shown = replace(now, records=records, used=used, last_graft_epoch=last)
        request, reason = policy.decide(shown)
        yield shown, request, reason
        if request is not None:
            used, last = used + request.kernel_budget, now.epoch
            grafts[str(request.site)] += 1
            ends[str(request.site)] = now.epoch + 2


def _situations(random: Random) -> Iterator[Situation]:
    """Epochs of a host that learns ever more slowly; health and kernel sizes are drawn."""
    losses: list[float] = []
    sizes = {name: random.randint(3, 40) for name in LAYERS}
    for epoch in range(EPOCHS):
        losses.append(1.0 + 2.0 * 0.7**epoch + 0.01 * random.random())
        signals = [
            HealthSignal(
                layer_name=name,
                epoch=epoch,
                gradient_rms=random.random() if random.random() < 0.9 else None,
                input_rms=random.random(),
            )
            for name in LAYERS
        ]
        records = {
            name: LayerGrowth(smallest_kernel=size, roomy_kernel=2 * size)
            for name, size in sizes.items()
        }
        yield Situation(epoch=epoch, losses=list(losses), signals=signals, records=records)
