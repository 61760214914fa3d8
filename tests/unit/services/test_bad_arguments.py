"""Arguments that cannot be: one sentence that names the thing, the value, what would be right."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper.contracts.errors import ConfigError, KernelError, MeasurementError
from esper.contracts.selection import SelectionContext, decision_data
from esper.integrations.plain import Growth
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from tests.unit.services.small_run import SmallRun


def losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = model(batch)
    return outputs.square().mean(dim=1)


def begin(make: Any, **given: Any) -> Any:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    if make is esper.Tamiyo:
        esper.wrap(model, layers=["0"])
    whole = {"loss_fn": losses, "holdout": [torch.ones(8, 4)], **given}
    return make(model, torch.optim.SGD(model.parameters(), lr=0.1), **whole)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"buget": 3}, "unknown argument of Growth 'buget'; known: layers, .*plan"),
        ({"layer": ["0"]}, "unknown argument of Growth 'layer'.*Did you mean 'layers'"),
        ({"stor": "a.db"}, "Did you mean 'store'"),
        ({"every": "x"}, "every is 'x'; it counts optimizer steps, and must be a whole number"),
        ({"every": True}, "every is True"),
        ({"every": 0}, "every is 0"),
        ({"layers": ["0"], "trackers": 3}, "trackers is 3; give a list of trackers"),
        ({"layers": ["0"], "scope": 3}, "scope is 3; it is a name, and must be text in UTF-8"),
        ({"layers": ["0"], "run": 3}, "run is 3; it is a name, and must be text in UTF-8"),
        ({"layers": ["0"], "run": "a\ud800"}, r"run is 'a\\ud800'; it is a name, and must be text"),
        ({"layers": ["0"], "loss_fn": None}, "loss_fn is None; give a function of the model"),
    ],
)
def test_of_growth(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        begin(Growth, **given)


@pytest.mark.parametrize("name", ["loss_fn", "accuracy_fn"])
def test_of_an_engine_functions_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 7; give a function of the model"):
        begin(esper.Tamiyo, **{name: 7})


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [
        (lambda model, batch: model(batch).mean(), r"^accuracy_fn.* one number, .* one value per"),
        (
            lambda model, batch: dict[str, torch.Tensor]()["top1"],
            r"^accuracy_fn fails on .*; accuracy_fn\(model, batch\)",
        ),
        (lambda model, batch: torch.ones(8, 8), r"^accuracy_fn\(model, batch\) returned \(8, 8\)"),
    ],
)
def test_of_an_engine_an_accuracy_that_fails_is_named(accuracy: Any, says: str) -> None:
    with pytest.raises((ConfigError, KernelError), match=says):
        begin(esper.Tamiyo, accuracy_fn=accuracy)


@pytest.mark.parametrize("scheduler", [0.1, "cosine", [0.1]])
def test_of_an_engine_a_scheduler_that_is_none(scheduler: Any) -> None:
    with pytest.raises(ConfigError, match=r"^scheduler is .*; pass the learning-rate scheduler"):
        begin(esper.Tamiyo, scheduler=scheduler)


def test_of_an_engine_a_holdout_of_inference_mode() -> None:
    with torch.inference_mode():
        made = torch.ones(8, 4)
    with pytest.raises(ConfigError, match=r"made under torch\.inference_mode\(\).*clone\(\)"):
        begin(esper.Tamiyo, holdout=[made])
    begin(esper.Tamiyo, holdout=[made.clone()])


@pytest.mark.parametrize("layers", [[0, 2], [nn.Linear(4, 4)], nn.Linear(4, 4)])
def test_of_wrap_layers_that_are_no_names(layers: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"layers has .*; give dotted names as text"):
        esper.wrap(model, layers)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_of_wrap_a_compiled_model() -> None:
    model: Any = torch.compile(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ConfigError, match=r"unknown layer '0'.*Wrap the model before torch\.comp"):
        esper.wrap(model, ["0"])


@pytest.mark.parametrize("config", [42, ["growth"], True])
def test_of_an_engine_a_config_that_is_none(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config is .*; give a mapping .*, the path .*Config$"):
        begin(esper.Tamiyo, config=config)


def test_of_a_store_that_another_model_of_the_class_has_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Journal(MemoryStore())

    def run(*layers: str, scope: str | None = None) -> str:
        caplog.clear()
        run = SmallRun(layers=layers, options={"store": store, "scope": scope})
        run.engine.tracker.record_selection(layers[-1], 0)
        run.engine.close()
        return caplog.text

    assert not run("fc1", "fc2")
    assert not run("fc2", "fc1"), "all of them are this model's"
    assert "runs of scope 'Sequential' that wrap other layers, as fc2; " in run("fc1")
    assert not run("fc1", scope="another")


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (0.5, r"an outcome is 0\.5; give a PerformanceDelta, as"),
        (esper.PerformanceDelta(reward=0.5, reward_stderr=-1.0), "reward_stderr is -1.0; it must"),
        (esper.PerformanceDelta(reward=0.5, rent=-1.0), "rent is -1.0; it must be >= 0"),
    ],
)
def test_of_a_tracker_an_outcome_that_is_none(measured: Any, says: str) -> None:
    with pytest.raises(MeasurementError, match=says):
        esper.PerformanceTracker().update_metrics_now("fc1", 0, measured)


@pytest.mark.parametrize("client", [object(), "sqlite:///history.db"])
def test_of_a_tracker_a_client_that_is_none(client: Any) -> None:
    with pytest.raises(ConfigError, match=r"redis_client is .*; give a client of redis-py"):
        esper.PerformanceTracker(client)


def test_of_a_bandit_more_arms_than_there_can_be() -> None:
    with pytest.raises(ConfigError, match="arms is 100000000000000000000; it must be below"):
        esper.Bandit("ucb", arms=10**20)


def test_whole_numbers_and_names_are_taken_wherever_they_are_meant() -> None:
    two = cast(int, np.int64(2))
    bandit, plain = esper.Bandit("ucb", arms=two, seed=two), esper.Bandit("ucb", arms=2, seed=2)
    assert [bandit.choose() for _ in range(4)] == [plain.choose() for _ in range(4)]
    json.dumps(bandit.state_dict())
    selector = SeedSelector("ucb", seed=two)
    made = selector.decide("fc1", [0, 1], SelectionContext(two))
    assert json.loads(json.dumps(decision_data(made)))["random_key"] == [2, "fc1", 0]
    assert type(made.epoch) is int
    for wrong in (cast(int, np.float64(2)), cast(int, "2"), True):
        with pytest.raises(ConfigError, match="it must be a whole number"):
            SeedSelector("ucb", seed=wrong)
    with pytest.raises(ConfigError, match="Did you mean 'ucb'"):
        SeedSelector("ucbb")


@pytest.mark.parametrize("model", [None, "net", nn.Linear])
def test_of_wrap_what_is_no_model(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"model is .*; give a torch\.nn\.Module"):
        esper.wrap(model, layers=["0"])


class _Lookahead:
    """A wrapper as in much public code, which is no optimizer of PyTorch's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


def test_of_an_engine_a_wrapper_without_a_state_is_refused_and_one_with_it_is_not() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    esper.wrap(model, layers=["0"])
    wrapper: Any = _Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    given: Any = {"loss_fn": losses, "holdout": [torch.ones(8, 4)]}
    with pytest.raises(ConfigError, match="_Lookahead wraps an optimizer and has no attribute st"):
        esper.Tamiyo(model, wrapper, **given)
    wrapper.state = wrapper.optimizer.state
    esper.Tamiyo(model, wrapper, **given).close()
