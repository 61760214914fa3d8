"""Worth of kernels and the curve of the held-out loss, by hand and of a small adaptation."""

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState
from tests.unit.adapters.test_adapt import adapted, batches, host, loss_fn
from tests.unit.adapters.test_adapters import outputs


class Adds(nn.Module):
    """Adds the same to every example, by one parameter for each unit of ``size``."""

    def __init__(self, value: float, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((size,), value / size))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.values.sum() + torch.zeros_like(x)


def grown(values: list[tuple[float, int]]) -> nn.Module:
    """The identity with one such kernel in a layer each."""
    layers = [nn.Linear(1, 1, bias=False) for _ in values]
    for linear in layers:
        nn.init.ones_(linear.weight)
    model = esper.wrap(nn.Sequential(*layers), [str(at) for at in range(len(values))], ["lowrank"])
    for layer, (value, size) in zip(model, values, strict=True):
        assert isinstance(layer, esper.KasminaLayer)
        layer.load_kernel(0, Adds(value, size))
        for state in ("training", "blending", "holding", "fossilized"):
            layer.advance(0, SeedState(state))
    return model


def distance(model: nn.Module, batch: Tensor) -> Tensor:
    added: Tensor = model(batch).squeeze(1) - batch.squeeze(1)
    return (added - 3).abs()


def test_worth_and_curve_by_hand() -> None:
    """Losses are |3 - what is added|: of 1, 2 and nothing, the 2 of one parameter comes first."""
    model = grown([(1.0, 4), (0.0, 5), (2.0, 1)])
    report = esper.adapter_report(model, loss_fn=distance, holdout=[torch.zeros(3, 1)] * 2)
    found = [(one.layer, one.parameters, round(one.gain, 5)) for one in report.kernels]
    assert found == [("2", 1, 2.0), ("0", 4, 1.0), ("1", 5, 0.0)]
    assert all(one.stderr == pytest.approx(0.0, abs=1e-6) for one in report.kernels)
    curve = [(one.kernels, one.parameters, round(one.loss, 5)) for one in report.curve]
    assert curve == [(0, 0, 3.0), (1, 1, 1.0), (2, 5, 0.0), (3, 10, 0.0)]
    assert [round(one.left, 5) for one in report.curve] == [3.0, 1.0, 0.0, 0.0]
    assert report.bend is report.curve[2]
    lines = str(report).splitlines()
    assert len(lines) == 1 + 4 + 1
    assert "+2.0000 ± 0.0000" in lines[2]
    assert lines[-1].startswith("the curve bends at 5 parameters in 2 kernel(s): the other 1, of 5")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([(1.0, 1), (1.0, 1)], "no bend: the last kernel is still worth more than its error"),
        (
            [(-1.0, 2)],
            "bends at 0 parameters in 0 kernel(s): all, of 2, are together worth -1.0000",
        ),
    ],
)
def test_where_it_bends(values: list[tuple[float, int]], says: str) -> None:
    x = torch.tensor([[0.0], [0.001]])
    assert says in str(esper.adapter_report(grown(values), loss_fn=distance, holdout=[x]))


def test_a_report_of_an_adaptation_leaves_the_model_as_it_was() -> None:
    model = host()
    adapted(model, seeds=["lora", "bias"], budget=2.0, steps=20, rate=3e-2)
    before, modes = outputs(model), [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    report = esper.adapter_report(model, loss_fn=loss_fn, holdout=batches(3, 5))
    assert torch.equal(outputs(model), before)
    assert list(model.modules()) == modules
    assert [module.training for module in modules] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in modules)
    losses = torch.cat([loss_fn(model, batch).detach() for batch in batches(3, 5)])
    assert report.curve[-1].loss == pytest.approx(float(losses.mean()), abs=1e-6)
    with esper.disabled(model):  # the curve begins with the head that was trained, this has the old
        assert float(loss_fn(model, batches(1, 5)[0]).detach().mean()) > report.curve[-1].loss
    assert report.curve[-1].parameters == sum(one.parameters for one in report.kernels)


def test_a_report_needs_kernels_and_examples() -> None:
    model = esper.wrap(host(), ["down"], ["lora"])
    with pytest.raises(ConfigError, match="has no kernels to report on; adapt it first"):
        esper.adapter_report(model, loss_fn=loss_fn, holdout=batches(1))
    with pytest.raises(ConfigError, match="holdout has no batches"):
        esper.adapter_report(grown([(1.0, 1)]), loss_fn=distance, holdout=[])
