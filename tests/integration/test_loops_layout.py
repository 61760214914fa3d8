"""Whole runs on layers whose axes are not (B, F) or (B, C, H, W)."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

import esper
from esper.contracts.errors import KernelError
from esper.execution.surgery import kasmina_layers
from esper.services.tamiyo.settings import config_from

QUICK = config_from(
    {
        "growth": {
            "warmup_epochs": 0,
            "train_epochs": 1,
            "plateau_threshold": 10.0,
            "keep_stderrs": 0.0,
            "probe_every": 3,
        }
    }
)


class TimeFirst(nn.Module):
    """An encoder in PyTorch's default layout, (T, B, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head = nn.Linear(8, 4)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.head(self.enc(x_BTF.transpose(0, 1)).mean(0))  # type: ignore[no-any-return]


class ChannelsLast(nn.Module):
    """Linear layers on (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))

    @override
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.mlp(x_BHWC).mean((1, 2))  # type: ignore[no-any-return]


class Mixing(nn.Module):
    """Block on (B, T, F) with a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF + self.conv(self.norm(x_BTF).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class OfBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Mixing()
        self.head = nn.Linear(8, 4)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.head(self.block(x_BTF).mean(1))  # type: ignore[no-any-return]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


RUNS: dict[str, tuple[Callable[[], nn.Module], str, Sequence[str] | None, tuple[int, ...], str]] = {
    "time first": (TimeFirst, "enc.linear2", ["attention", "causal_mixer"], (5, 8), "TBF"),
    "channels last": (ChannelsLast, "mlp.0", None, (6, 6, 3), "BHWC"),
    "block in time": (OfBlocks, "block", None, (5, 8), "BLF"),
    "block in time, by attention": (OfBlocks, "block", ["attention"], (8, 8), "BLF"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_grows_and_mixes_no_examples(name: str) -> None:
    make, layer_name, seeds, shape, axes = RUNS[name]
    torch.manual_seed(0)
    x = torch.randn(240, *shape)
    rows = x.flatten(1)
    y = (rows.mean(1) > 0).long() + 2 * (rows.square().mean(1) > 1).long()
    model = esper.wrap(make(), [layer_name], seeds)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    holdout = [(x[160:], y[160:])]
    tamiyo = esper.Tamiyo(model, optimizer, loss_fn=cross_entropy, holdout=holdout, config=QUICK)
    verdicts: list[Any] = []
    for epoch in range(12):
        model.train()
        for batch in zip(torch.split(x[:160], 40), torch.split(y[:160], 40), strict=True):
            optimizer.zero_grad()
            cross_entropy(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tamiyo.on_batch_end(batch)
        verdicts += tamiyo.on_epoch_end(epoch).verdicts
    assert verdicts
    assert all(verdict.reward is not None for verdict in verdicts)
    layer = kasmina_layers(model)[layer_name]
    assert layer.spec is not None
    assert layer.spec.axes == axes
    assert layer.is_grown
    model.eval()
    changed = x[:6].clone()
    changed[2] += 10
    moved = (model(x[:6]) != model(changed)).any(dim=1).tolist()
    assert moved == [index == 2 for index in range(6)]
    plain = esper.harden(model)
    assert torch.equal(plain(x[:6]), model(x[:6]))
    # The topology, layout included, travels with the state.
    again = esper.wrap(make(), [layer_name], seeds).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x[:6]), model(x[:6]))


class Ragged(nn.Module):
    """A layer on examples of unlike lengths, or of few entries."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        if self.kind == "sparse":
            return self.head(self.layer(x_BTF.mean(1).to_sparse()))  # type: ignore[no-any-return]
        layout = torch.jagged if self.kind == "jagged" else torch.strided
        parts = [x[: 1 + i % 3] for i, x in enumerate(x_BTF)]
        y = self.layer(torch.nested.nested_tensor(parts, layout=layout))
        return self.head(torch.stack([part.mean(0) for part in y.unbind()]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["sparse", "jagged", "strided"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_are_not_dense_are_refused(kind: str) -> None:
    model = esper.wrap(Ragged(kind), ["layer"])
    batch = (torch.randn(6, 5, 8), torch.zeros(6, dtype=torch.long))
    with pytest.raises(KernelError, match="reads or writes nested or sparse tensors"):
        esper.Tamiyo(
            model,
            torch.optim.Adam(model.parameters()),
            loss_fn=cross_entropy,
            holdout=[batch],
        )


class Padded(nn.Module):
    """Pads a batch that is a nested tensor, behind its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.first(x)).to_padded_tensor(0.0).mean(1))
        return y


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_batch_of_nested_tensors_grows_where_it_is_padded(layout: torch.layout) -> None:
    def batch(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        parts = [torch.randn(1 + i % 3, 8) for i in range(6)]
        return torch.nested.nested_tensor(parts, layout=layout), torch.arange(6) % 4

    model = esper.wrap(Padded(), ["head"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    growth = {"warmup_epochs": 0, "train_epochs": 1, "plateau_threshold": 1000.0}
    with esper.Tamiyo(
        model,
        optimizer,
        loss_fn=cross_entropy,
        holdout=[batch(1), batch(2)],
        config={"growth": growth},
    ) as tamiyo:
        for epoch in range(5):
            for seed in (3, 4):
                optimizer.zero_grad()
                cross_entropy(model, batch(seed)).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                tamiyo.on_batch_end(batch(seed))
            tamiyo.on_epoch_end(epoch)
        assert any(event.kind == "outcome" for event in tamiyo.events())
