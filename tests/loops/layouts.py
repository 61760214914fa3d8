"""Layouts: which axis is batch, time, feature, channel, height."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper.execution.surgery import kasmina_layers
from tests.loops.situations import refused, works
from tests.loops.trial import Trial

Batches = list[tuple[Tensor, Tensor]]


def data(*shape: int, seed: int, count: int, size: int = 16) -> Batches:
    """Batches of inputs (size, *shape) and of one of four classes for each."""
    draws = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.randn(size, *shape, generator=draws)
        rows = x.flatten(1)
        made.append((x, (rows.mean(1) > 0).long() + 2 * (rows[:, 0] > 0).long()))
    return made


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def train(
    trial: Trial,
    model: nn.Module,
    layer: str,
    shape: Sequence[int],
    axes: str,
    *,
    seeds: Any = None,
    layout: dict[str, str] | None = None,
) -> None:
    """Train; a change of one example must then move no other's output."""
    train, held_out = data(*shape, seed=1, count=4), data(*shape, seed=2, count=2)
    trial.wrap(model, [layer], seeds, layout=layout)
    tamiyo = trial.train(model, [], loss_fn=loss_fn, batches=train, holdout=held_out)
    if not trial.grown:
        return
    spec = kasmina_layers(model)[layer].spec
    assert spec is not None
    assert spec.axes == axes
    x = held_out[0][0][:4]
    changed = x.clone()
    changed[1] += 10
    with torch.no_grad():
        moved = (model.eval()(x) != model(changed)).any(dim=1)
    assert moved.tolist() == [False, True, False, False]
    assert tamiyo.blended or any(not verdict.kept for verdict in tamiyo.verdicts)


class Pooled(nn.Module):
    """Runs a body and pools everything but batch and features."""

    def __init__(self, body: nn.Module, width: int, *, feature: int = -1) -> None:
        super().__init__()
        self.body = body
        self.feature = feature
        self.head = nn.Linear(width, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).movedim(self.feature, -1).flatten(1, -2)
        pooled: Tensor = self.head(y.mean(1) if y.ndim > 2 else y)
        return pooled


@works
def features(trial: Trial) -> None:
    """`nn.Linear` on (B, F)."""
    train(trial, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), "0", (6,), "BF")


@works
def sequence(trial: Trial) -> None:
    """`nn.Linear` on (B, T, F), with attention and a mixer of positions as seeds."""
    body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    train(trial, Pooled(body, 8), "body.0", (5, 6), "BTF", seeds=["causal_mixer", "glu"])


class TimeFirst(nn.Module):
    """An encoder in PyTorch's default layout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head = nn.Linear(8, 4)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(x_BTF.transpose(0, 1)).mean(0))
        return y


@works
def time_first(trial: Trial) -> None:
    """Inside `nn.TransformerEncoderLayer` in its default layout, (T, B, F), by attention."""
    train(trial, TimeFirst(), "encoder.linear2", (5, 8), "TBF", seeds=["attention", "causal_mixer"])


@works
def layout_that_is_said(trial: Trial) -> None:
    """(T, B, F) by the user's word: `esper.wrap(..., layout={"encoder": "TBF"})`."""
    train(
        trial,
        TimeFirst(),
        "encoder",
        (5, 8),
        "TBF",
        seeds=["glu", "causal_mixer"],
        layout={"encoder": "TBF"},
    )


@works
def images_channels_last(trial: Trial) -> None:
    """`nn.Linear` on (B, H, W, C), as in Swin and ConvNeXt."""
    body = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    train(trial, Pooled(body, 8), "body.0", (4, 4, 3), "BHWC")


@works
def images(trial: Trial) -> None:
    """`nn.Conv2d` on (B, C, H, W)."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    train(trial, Pooled(body, 8, feature=1), "body.0", (3, 5, 5), "BCHW")


@works
def channels_last_memory(trial: Trial) -> None:
    """A convolutional model in `torch.channels_last` memory format."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model = Pooled(body, 8, feature=1)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(trial, model, "body.2", (3, 5, 5), "BCHW")


@works
def dilated_and_grouped(trial: Trial) -> None:
    """`nn.Conv2d` with stride, dilation, groups and circular padding."""
    conv = nn.Conv2d(4, 8, 3, 2, padding=2, dilation=2, groups=2, padding_mode="circular")
    train(trial, Pooled(nn.Sequential(conv, nn.ReLU()), 8, feature=1), "body.0", (4, 6, 6), "BCHW")


@works
def depthwise_convolution(trial: Trial) -> None:
    """A depthwise `nn.Conv2d`, one group for each channel."""
    body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU())
    train(trial, Pooled(body, 6, feature=1), "body.0", (6, 5, 5), "BCHW")


@works
def series(trial: Trial) -> None:
    """`nn.Conv1d` on (B, C, L)."""
    body = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU())
    train(trial, Pooled(body, 8, feature=1), "body.0", (3, 7), "BCL")


class ConvInside(nn.Module):
    """A block on (B, T, F) with a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


@works
def convolution_inside_a_block(trial: Trial) -> None:
    """A block on (B, T, F) that has an `nn.Conv1d` inside."""
    train(trial, Pooled(ConvInside(), 6), "body", (5, 6), "BLF")


@works
def lengths_that_change(trial: Trial) -> None:
    """Sequences of another length in every batch."""
    model = Pooled(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), 8)
    batches = [b for t in (5, 3, 8, 6) for b in data(t, 6, seed=t, count=1)]
    held_out = [b for t in (4, 9) for b in data(t, 6, seed=t, count=1)]
    trial.wrap(model, ["body.0"], ["attention", "causal_mixer"])
    trial.train(model, [], loss_fn=loss_fn, batches=batches, holdout=held_out)


@works
def images_of_other_sizes(trial: Trial) -> None:
    """Images of another size in every batch."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    batches = [b for n in (5, 8, 6, 7) for b in data(3, n, n, seed=n, count=1)]
    held_out = [b for n in (4, 9) for b in data(3, n, n, seed=n, count=1)]
    model = Pooled(body, 8, feature=1)
    trial.train(model, ["body.0"], loss_fn=loss_fn, batches=batches, holdout=held_out)


class Windows(nn.Module):
    """Attention's place in Swin: (B, T, F) is cut into windows, (2 B, T / 2, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(len(x) * 2, -1, 6)
        h = torch.relu(self.fc1(windows)).reshape(len(x), -1, 8)
        y: Tensor = self.head(h.mean(1))
        return y


@works
def windows(trial: Trial) -> None:
    """The first axis has windows of the examples, as in Swin, with attention as seed."""
    train(trial, Windows(), "fc1", (6, 6), "BTF", seeds=["attention", "glu"])


@works
def tokens_in_rows(trial: Trial) -> None:
    """`nn.Linear` on the tokens of all examples in rows, (B T, F)."""

    class Rows(Windows):
        @override
        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.fc1(x.flatten(0, 1))).reshape(len(x), -1, 8)
            y: Tensor = self.head(h.mean(1))
            return y

    train(trial, Rows(), "fc1", (6, 6), "BF")


class OverTime(nn.Module):
    """Mixes positions: a linear layer over time, on (B, F, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 5)
        self.head = nn.Linear(6, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        mixed = self.fc1(x.transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.head((x + mixed).mean(1))
        return y


@works
def linear_over_time(trial: Trial) -> None:
    """`nn.Linear` over time, on (B, F, T), as in an MLP-Mixer."""
    train(trial, OverTime(), "fc1", (5, 6), "BTF")


@works
def normalised_images(trial: Trial) -> None:
    """`nn.BatchNorm2d` on (B, C, H, W)."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    train(trial, Pooled(body, 8, feature=1), "body.1", (3, 5, 5), "BCHW")


@works
def pooling(trial: Trial) -> None:
    """`nn.MaxPool2d`, which halves height and width."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2))
    train(trial, Pooled(body, 8, feature=1), "body.1", (3, 6, 6), "BCHW")


@works
def more_axes(trial: Trial) -> None:
    """`nn.Linear` on five axes, (B, T, H, W, C)."""
    train(trial, Pooled(nn.Linear(3, 8), 8), "body", (2, 3, 3, 3), "BNNNF")


@works
def volumes(trial: Trial) -> None:
    """`nn.Conv3d` on (B, C, D, H, W); its kernels work on the channels of each place."""
    body = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU())
    train(trial, Pooled(body, 4, feature=1), "body.0", (2, 3, 3, 3), "BCNNN")


@refused("layout of layer '0' is 'TBF', but its input has shape (16, 6); give 2 letters")
def wrong_layout(trial: Trial) -> None:
    """The layout that the user says is not what a pass shows."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    train(trial, model, "0", (6,), "BF", layout={"0": "TBF"})


@refused(
    "layer 'body.0' cannot grow: none of its seeds' blueprints, conv_bottleneck, depthwise, "
    "conv_block, conv_bottleneck, fits it (blueprint 'conv_bottleneck' does not fit a conv2d "
    "layer (ConvTranspose2d, 3x4x4 -> 8x8x8): no whole stride s gives ceil(n / s) or "
    "floor(n / s) for its extents, 4 -> 8; wrap the convolution itself, so that its own geometry "
    "is known, or pad it); give it others by esper.wrap(..., seeds=[...]), or wrap a layer "
    "beside it"
)
def transposed_convolution(trial: Trial) -> None:
    """The one wrapped layer is an `nn.ConvTranspose2d`."""
    body = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU())
    train(trial, Pooled(body, 8, feature=1), "body.0", (3, 4, 4), "BCHW")


@refused(
    "layout of layer '0' is 'BX'; it must have each of its letters once, of B batch, T time, "
    "L length, H height, W width, F features, C channels, as 'TBF'"
)
def layout_without_meaning(trial: Trial) -> None:
    """The layout that the user says has an unknown letter."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    train(trial, model, "0", (6,), "BF", layout={"0": "BX"})
