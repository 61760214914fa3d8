"""The governor: an ill host gets its health back, and nothing else is ever touched."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.contracts.config import Config, Growth
from esper.services.tamiyo.growth.governor import Governor
from esper.services.tamiyo.tamiyo import Tamiyo

Batch = tuple[Tensor, Tensor]


def _trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    _steps(model, optimizer, 5)
    return model, optimizer


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(16, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def test_it_puts_weights_buffers_and_optimizer_state_back_in_place() -> None:
    model, optimizer = _trained()
    twin, twin_optimizer = _trained()
    identities = [id(p) for p in model.parameters()]
    governor = Governor(model, optimizer, divergence_factor=3.0)
    governor.keep(1.0, 4)
    _steps(model, optimizer, 3)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(7)
    governor.restore()
    assert [id(p) for p in model.parameters()] == identities
    _steps(model, optimizer, 3)
    _steps(twin, twin_optimizer, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_a_parameter_without_state_then_has_none_now() -> None:
    model, optimizer = _trained()
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late]})
    governor = Governor(model, optimizer, divergence_factor=3.0)
    governor.keep(1.0, 0)
    late.grad = torch.ones(2)
    optimizer.step()
    assert late in optimizer.state
    governor.restore()
    assert late not in optimizer.state


@pytest.mark.parametrize(
    ("loss", "ill"),
    [(0.5, False), (1.0, False), (2.9, False), (3.1, True), (float("nan"), True), (1e400, True)],
)
def test_what_counts_as_ill(loss: float, ill: bool) -> None:
    model, optimizer = _trained()
    governor = Governor(model, optimizer, divergence_factor=3.0)
    assert not governor.objection(loss), "nothing is kept yet, so nothing can be at fault"
    governor.keep(1.0, 0)
    assert bool(governor.objection(loss)) is ill
    governor.let_go()
    assert not governor.objection(loss)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _run(*, ruin_at: int | None, epochs: int = 7) -> tuple[Tamiyo, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = (x[:, 0] * x[:, 1] > 0).long()
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    model = esper.wrap(
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), ["0"], ["bottleneck", "glu"]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    growth = Growth(budget=400, warmup_epochs=1, train_epochs=1, blend_epochs=2, max_active=1)
    tamiyo = Tamiyo(
        model, optimizer, loss_fn=_loss, holdout=batches[6:], config=Config(growth=growth)
    )
    states = []
    for epoch in range(epochs):
        for batch in batches[:6]:
            optimizer.zero_grad()
            _loss(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tamiyo.on_batch_end(batch)
        if epoch == ruin_at:
            with torch.no_grad():
                next(model.parameters()).mul_(float("nan"))
        tamiyo.on_epoch_end(epoch)
        hosts = {k: v for k, v in model.state_dict().items() if "host" in k}
        states.append(deepcopy(hosts))
    return tamiyo, states


def test_a_host_ruined_while_a_kernel_blends_is_rolled_back_and_goes_on() -> None:
    healthy, before = _run(ruin_at=None, epochs=5)
    steps = [e.data for e in healthy.events() if e.data.get("new") == "blending"]
    blending = int(steps[0]["epoch"])
    tamiyo, states = _run(ruin_at=blending + 1)
    events = {e.kind: e.data for e in tamiyo.events()}
    assert events["rollback"]["to_epoch"] == blending
    assert "rolled back" in events["failure"]["error"]
    for name, value in states[blending + 1].items():
        assert torch.equal(value, before[blending][name]), name
    assert all(torch.isfinite(value).all() for value in states[-1].values())


def test_a_host_that_ruins_itself_is_left_alone() -> None:
    tamiyo, states = _run(ruin_at=0)
    assert not [e for e in tamiyo.events() if e.kind in ("rollback", "decision")]
    assert not any(torch.isfinite(value).all() for value in [states[-1]["0.host.weight"]])
    epochs = [e.data for e in tamiyo.events() if e.kind == "epoch"]
    assert epochs[-1]["holdout_loss"] is None
    assert "nan" in epochs[-1]["reason"]
