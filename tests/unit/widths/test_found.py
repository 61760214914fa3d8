"""Widths that can grow: what grows together, and what a unit costs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.tasks import TASKS
from esper.widths.widened import Widened
from tests.unit.widths import models
from tests.unit.widths.models import Conv1D, LowRank, Written, mlp

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))

Answer = dict[str, tuple[int, int, str]]
"""Units, parameters of one more, and what grows: producers > norms > consumers; by name."""

TASK_ANSWERS: dict[str, Answer] = {
    # 16 weights and a bias in, a column of 8 out; then 8 and a bias in, 26 out.
    "letter": {"fc1": (8, 17 + 8, "fc1 >> fc2"), "fc2": (8, 9 + 26, "fc2 >> fc3")},
    "digits": {
        "fc1": (4, 65 + 4, "fc1 >> block.0"),
        "block.0": (4, 5 + 4, "block.0 >> block.2"),
        "block.2": (4, 5 + 10, "block.2 >> head"),
    },
    "mnist1d": {
        "stem": (8, 6 + 8 * 3, "stem >> conv1"),
        "conv1": (8, 25 + 8 * 3, "conv1 >> conv2"),
        "conv2": (8, 25 + 8 * 3, "conv2 >> conv3"),
        "conv3": (8, 25 + 10, "conv3 >> head"),
    },
    "mnist5k": {
        "stem": (4, 10 + 4 * 9, "stem >> conv1"),
        "conv1": (4, 37 + 4 * 9, "conv1 >> conv2"),
        "conv2": (4, 37 + 4 * 9, "conv2 >> conv3"),
        "conv3": (4, 37 + 10, "conv3 >> head"),
    },
}


def residual_linear() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        return m.head(x + m.inner(x).tanh())

    layers = {"stem": nn.Linear(8, 6), "inner": nn.Linear(6, 6), "head": nn.Linear(6, 3)}
    return Written(forward, **layers)


def two_readers() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = m.a(x).relu()
        return m.d(m.b(h)), m.c(h)

    layers = {"a": nn.Linear(8, 6), "b": nn.Linear(6, 4), "c": nn.Linear(6, 3)}
    return Written(forward, **layers, d=nn.Linear(4, 2))


def auxiliary() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = F.dropout(m.a(x).relu(), 0.0, m.training)
        return (m.b(h), m.aux(h)) if m.training else m.b(h)

    return Written(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 4), aux=nn.Linear(6, 2))


def branch_born_zero() -> nn.Module:
    model = mlp()
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.b.bias)
    norm = nn.BatchNorm1d(4)
    nn.init.zeros_(norm.weight)
    return Written(lambda m, x: x[:, :4] + m.norm(m.mlp(x)), mlp=model, norm=norm)


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Answer]] = {
    "mlp": (mlp, ROWS, {"a": (6, 9 + 4, "a >> b")}),
    "sequence": (mlp, TOKENS, {"a": (6, 9 + 4, "a >> b")}),
    "two readers": (
        two_readers,
        ROWS,
        {"a": (6, 9 + 4 + 3, "a >> b c"), "b": (4, 7 + 2, "b >> d")},
    ),
    "resnet": (
        models.resnet,
        IMAGES,
        {
            "stem.0": (
                4,
                (27 + 2) + (36 + 2) + 36 + 54 + 6,
                "stem.0 b1.c2 > stem.1 b1.n2 > b1.c1 b2.c1 b2.down.0",
            ),
            "b1.c1": (4, 36 + 2 + 36, "b1.c1 > b1.n1 > b1.c2"),
            "b2.c1": (6, 36 + 2 + 54, "b2.c1 > b2.n1 > b2.c2"),
            "b2.c2": (6, 54 + 2 + 4 + 2 + 10, "b2.c2 b2.down.0 > b2.n2 b2.down.1 > head"),
        },
    ),
    "mobile": (
        models.mobile,
        IMAGES,
        {
            "stem": (4, 28 + 8 + 2 + 8 + 10, "stem block.6 > block.7 > block.0 head"),
            "block.0": (8, 4 + 2 + 9 + 2 + 4, "block.0 > block.1 block.3 block.4 > block.6"),
        },
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        TOKENS,
        {"linear1": (16, 9 + 8, "linear1 >> linear2")},
    ),
    "swiglu": (models.swiglu, TOKENS, {"gate": (12, 9 + 9 + 8, "gate up >> down")}),
    "fused swiglu": (models.fused_swiglu, TOKENS, {"both": (6, 18 + 8, "both x 2 >> down")}),
    "glu": (
        lambda: Written(lambda m, x: m.b(F.glu(m.a(x))), a=nn.Linear(8, 12), b=nn.Linear(6, 4)),
        TOKENS,
        {"a": (6, 18 + 4, "a x 2 >> b")},
    ),
    "flattened channels": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 10),
        ),
        IMAGES,
        {"0": (6, 28 + 16 * 10, "0 >> 4 x 16")},
    ),
    "flattened tokens": (
        lambda: Written(
            lambda m, x: m.c(m.b(m.a(x).flatten(1))),
            a=nn.Linear(8, 6),
            b=nn.BatchNorm1d(30),
            c=nn.Linear(30, 4),
        ),
        TOKENS,
        {"a": (6, 9 + 5 * 2 + 5 * 4, "a > b x 5 > c x 5")},
    ),
    "pooling": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 6, 3),
            nn.BatchNorm1d(6, affine=False),
            nn.AvgPool1d(2),
            nn.Conv1d(6, 5, 3, bias=False),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            nn.Linear(5, 2),
        ),
        IMAGES.flatten(2),
        {"0": (6, 10 + 15, "0 > 1 > 3"), "3": (5, 18 + 2, "3 >> 6")},
    ),
    "transposed convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 5, 2), nn.GELU(), nn.ConvTranspose2d(5, 3, 1)
        ),
        IMAGES,
        {"0": (6, 28 + 20, "0 >> 1"), "1": (5, 25 + 3, "1 >> 3")},
    ),
    "depthwise with a multiplier": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 2, 1)
        ),
        IMAGES,
        {"0": (6, 4 + 2 * 10 + 2 * 2, "0 > 1 x 2 > 2 x 2")},
    ),
    "Conv1D": (
        lambda: nn.Sequential(Conv1D(16, 8), nn.GELU(), Conv1D(8, 16)),
        TOKENS,
        {"0": (16, 9 + 8, "0 >> 2")},
    ),
    "adapters": (
        lambda: nn.Sequential(LowRank(8, 6, 2), nn.ReLU(), LowRank(6, 4, 3)),
        ROWS,
        {
            "0.base": (6, 9 + 2 + 4 + 3, "0.base 0.up >> 2.base 2.down"),
            "0.down": (2, 8 + 6, "0.down >> 0.up"),
            "2.down": (3, 6 + 4, "2.down >> 2.up"),
        },
    ),
    "rows and columns of one layer": (
        residual_linear,
        ROWS,
        # inner: 6 weights in its new row, 6 in its new column, the corner and a bias.
        {"stem": (6, 9 + 14 + 3, "stem inner >> inner head")},
    ),
    "mixed places": (
        lambda: Written(
            lambda m, x: m.c(m.b(m.a(x).transpose(1, 2)).transpose(1, 2)),
            a=nn.Linear(8, 6),
            b=nn.Linear(5, 5),
            c=nn.Linear(6, 4),
        ),
        TOKENS,
        {"a": (6, 9 + 4, "a >> c")},
    ),
    "graph convolution": (
        lambda: mlp(lambda m, h: torch.ones(6, 6) @ h),
        ROWS,
        {"a": (6, 9 + 4, "a >> b")},
    ),
    "last token": (
        lambda: mlp(lambda m, h: h[torch.arange(3), torch.tensor([1, 2, 4])]),
        TOKENS,
        {"a": (6, 9 + 4, "a >> b")},
    ),
    "cat of examples": (
        lambda: mlp(lambda m, h: torch.cat([h, h * 2])),
        ROWS,
        {"a": (6, 9 + 4, "a >> b")},
    ),
    "dropout of channels": (
        lambda: models.convolutions(lambda m, h: m.drop(h), drop=nn.Dropout2d(0.5)),
        IMAGES,
        {"a": (8, 28 + 36, "a >> b")},
    ),
    "part in training alone": (auxiliary, ROWS, {"a": (6, 9 + 4 + 2, "a >> b aux")}),
    "branch born zero": (branch_born_zero, ROWS, {"mlp.a": (6, 9 + 4, "mlp.a >> mlp.b")}),
    "one unit": (
        lambda: nn.Sequential(nn.Linear(8, 1), nn.Tanh(), nn.Linear(1, 4)),
        ROWS,
        {"0": (1, 9 + 4, "0 >> 2")},
    ),
    "heads": (
        lambda: models.attention(num_heads=2),
        TOKENS,
        # 4 rows of 8 weights and a bias in each of three layers, 4 columns of 8.
        {"q": (2, 3 * 36 + 32, "q x 4 k x 4 v x 4 >> out x 4")},
    ),
    "heads inside": (
        lambda: nn.Sequential(models.attention(num_heads=2)),
        TOKENS,
        {"0.q": (2, 3 * 36 + 32, "0.q x 4 0.k x 4 0.v x 4 >> 0.out x 4")},
    ),
    "heads in three parts": (
        lambda: models.fused_attention(models.parts, num_heads=2, head_dim=4, split_size=8),
        TOKENS,
        {"qkv": (2, 3 * 36 + 32, "qkv x 12 >> out x 4")},
    ),
    "heads in one view": (
        lambda: models.fused_attention(models.together, num_heads=2),
        TOKENS,
        {"qkv": (2, 3 * 36 + 32, "qkv x 12 >> out x 4")},
    ),
    "interleaved heads": (
        lambda: models.fused_attention(models.interleaved, num_attention_heads=2),
        TOKENS,
        {"qkv": (2, 3 * 36 + 32, "qkv x 12 >> out x 4")},
    ),
    "heads beside examples": (
        lambda: models.fused_attention(models.flattened, n_head=2),
        TOKENS,
        {"qkv": (2, 3 * 36 + 32, "qkv x 12 >> out x 4")},
    ),
    "double": (lambda: mlp().double(), ROWS.double(), {"a": (6, 9 + 4, "a >> b")}),
    "bfloat16": (lambda: mlp().bfloat16(), ROWS.bfloat16(), {"a": (6, 9 + 4, "a >> b")}),
}


def answer(found: Any) -> Answer:
    """What was found, in the form of the answers."""
    told: Answer = {}
    for width in found:
        if width.refused:
            continue
        text = []
        for role, names in (
            ("producer", width.producers), ("norm", width.norms), ("consumer", width.consumers)
        ):  # fmt: skip
            places = {m.name: m.places for m in width.members if m.role == role}
            text.append(" ".join(n + (f" x {places[n]}" if places[n] > 1 else "") for n in names))
        told[width.name] = (width.units, width.cost, " > ".join(text).replace(">  >", ">>"))
    return told


TASK_LAYERS = {
    "letter": ["fc1", "fc2", "fc3"],
    "digits": ["fc1", "block", "head"],
    "mnist1d": ["conv1", "conv2", "conv3"],
    "mnist5k": ["conv1", "conv2", "conv3"],
}


@pytest.mark.parametrize("name", TASK_ANSWERS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_hosts_of_the_tasks(name: str, wrapped: bool) -> None:
    task = TASKS.create(name)
    host = task.host(0)
    if wrapped:
        esper.wrap(host, TASK_LAYERS[name])
    inputs, targets = next(iter(task.train_batches(0, 0)))
    found = esper.sites(host, (inputs[:8], targets[:8]), loss_fn=task.loss_fn)
    if wrapped:
        why = {w.name: w.refused for w in found if w.name in TASK_ANSWERS[name]}
        assert why.keys() == TASK_ANSWERS[name].keys()
        inside = why.pop("block.0", "")  # the layer around it reads and writes other units
        assert not inside
        assert all("kernel beside it would not grow with it" in text for text in why.values())
        return
    assert answer(found) == TASK_ANSWERS[name]
    last = found[-1]
    assert last.producers == ("fc3" if name == "letter" else "head",)
    assert last.refused == "the loss reads it (log_softmax)"


def test_a_wrapped_layer_in_a_wrapped_model_keeps_its_name() -> None:
    torch.manual_seed(0)
    host = esper.wrap(models.swiglu(), ["gate", "down"], ["glu"])
    model = esper.KasminaLayer(nn.Sequential(host), name="", seeds=["glu"])
    width = esper.sites(model, TOKENS)["0.gate"]
    assert (width.units, width.cost, width.producers) == (12, 26, ("0.gate", "0.up"))
    assert width.refused == "'0.gate' is wrapped, and a kernel beside it would not grow with it"


@pytest.mark.parametrize("name", CASES)
def test_answers_by_hand(name: str) -> None:
    make, batch, expected = CASES[name]
    torch.manual_seed(0)
    assert answer(esper.sites(make(), batch)) == expected


@pytest.mark.parametrize("name", CASES)
def test_one_more_unit_at_every_width(name: str) -> None:
    """What the answers say holds: same outputs, and as many parameters more."""
    make, batch, expected = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    modules = dict(model.named_modules())
    for width in [w for w in esper.sites(model, batch) if not w.refused]:
        before, count = model(batch), sum(p.numel() for p in model.parameters())
        with Widened(modules, [width], draw=4, read=False).in_place():
            after = model(batch)
            more = {
                id(t): t for m in modules.values() for t in m._parameters.values() if t is not None
            }
        assert sum(t.numel() for t in more.values()) - count == expected[width.name][1]
        tolerance = 0.05 if name == "bfloat16" else 1e-5
        torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
