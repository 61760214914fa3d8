"""Widths that cannot grow, and the sentence that says why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

import esper
from esper.contracts.seeds import SeedState
from tests.unit.execution import models as hosts
from tests.unit.widths import models
from tests.unit.widths.models import Written, convolutions, mlp
from tests.unit.widths.test_found import IMAGES, ROWS, TOKENS

KNOWN = "is not an operation that units can be followed through"


def tied() -> nn.Module:
    table, head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
    head.weight = table.weight
    inner = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))
    return Written(lambda m, i: m.head(m.mlp(m.table(i)).tanh()), table=table, mlp=inner, head=head)


def normed_stream() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        return m.head(x + m.up(m.norm(x)))

    layers = {"stem": nn.Linear(8, 6), "norm": nn.LayerNorm(6), "up": nn.Linear(6, 6)}
    return Written(forward, **layers, head=nn.Linear(6, 2))


def hooked() -> Any:
    model = mlp()
    model.a.register_forward_hook(lambda module, args, y: F.layer_norm(y, (6,)))
    return model


def patched() -> Any:
    model = mlp()
    plain = model.a.forward
    model.a.forward = lambda x: plain(x).softmax(-1)
    return model


def reads_rows() -> nn.Module:
    return Written(
        lambda m, x: m.b(m.a(x)) + F.linear(x, m.a.weight[:4]), a=nn.Linear(8, 6), b=nn.Linear(6, 4)
    )


def recurrent() -> nn.Module:
    return Written(
        lambda m, x: m.out(m.step(m.step(m.into(x)).tanh()).tanh()),
        into=nn.Linear(8, 6),
        step=nn.Linear(6, 6),
        out=nn.Linear(6, 3),
    )


def outer_product() -> nn.Module:
    return Written(
        lambda m, x: m.c((m.a(x)[:, :, None] * m.b(x)[:, None]).flatten(1)),
        a=nn.Linear(8, 6),
        b=nn.Linear(8, 5),
        c=nn.Linear(30, 2),
    )


def normed_weights() -> nn.Module:
    b = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    return Written(lambda m, x: m.b(m.a(x)), a=nn.Linear(8, 6), b=b)


def fixed_shape() -> nn.Module:
    a, b = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(384, 4)
    return Written(lambda m, x: m.b(m.a(x).view(-1, 384)), a=a, b=b)


class Gain(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))


def mean_beside(m: Any, h: Tensor) -> Tensor:
    """Adds the mean over all units, hidden from PyTorch."""
    del m
    return h + torch.from_numpy(h.detach().numpy().mean(-1, keepdims=True))


def grouped_queries() -> Any:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (
            y.unflatten(-1, (-1, m.head_dim)).transpose(1, 2) for y in (m.q(x), m.k(x), m.v(x))
        )
        k, v = (y.repeat_interleave(2, 1) for y in (k, v))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model: Any = Written(
        forward, q=nn.Linear(8, 8), k=nn.Linear(8, 4), v=nn.Linear(8, 4), out=nn.Linear(8, 8)
    )
    model.head_dim = 2
    return model


def placed_by_a_table() -> Any:
    def mix(m: Any, y: Any) -> Any:
        apart = y.unflatten(-1, (3, m.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHTD, k_BHTD, v_BHTD = apart.unbind(0)
        weights = (q_BHTD @ k_BHTD.mT + m.table).softmax(-1)
        return (weights @ v_BHTD).transpose(1, 2).flatten(2)

    model = models.fused_attention(mix, num_heads=2)
    model.table = nn.Parameter(torch.randn(2, 5, 5))
    return model


def width_of_the_input(**said: int) -> Any:
    """The input's shape stands for that of all heads, as in nanoGPT."""

    def mix(m: Any, y: Any) -> Any:
        q, k, v = (p.view(3, 5, m.n_head, 4).transpose(1, 2) for p in y.split(m.n_embd, 2))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 8)

    return models.fused_attention(mix, n_head=2, n_embd=8, **said)


ALL = "in the model reads all its units at once"
PICKS = "in the model picks among its units"
FIXED = "joins its units with a tensor that cannot grow"
HEADS = "view in the model takes the axis of its units apart, as into heads"

BETWEEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "softmax": (lambda: mlp(lambda m, h: h.softmax(-1)), f"softmax {ALL}"),
    "sum": (lambda: mlp(lambda m, h: h / h.sum(-1, keepdim=True)), f"sum {ALL}"),
    "flip": (lambda: mlp(lambda m, h: h.flip(-1)), f"flip {PICKS}"),
    "slice": (lambda: mlp(lambda m, h: F.pad(h[:, :4], (0, 2))), f"slice {PICKS}"),
    "gain": (lambda: mlp(lambda m, h: h * m.g.gain, g=Gain(6)), f"mul in the model {FIXED}"),
    "PReLU": (lambda: mlp(lambda m, h: m.p(h), p=nn.PReLU(6)), f"prelu_kernel in 'p' {FIXED}"),
    "products": (
        lambda: mlp(lambda m, h: h @ h.mT @ h),
        "mm in the model multiplies its units by others or by fixed weights",
    ),
    "add_": (
        lambda: mlp(lambda m, h: torch.zeros(6, 6).add_(h)),
        "add in the model writes its units into another tensor",
    ),
    "copy_": (
        lambda: mlp(lambda m, h: torch.zeros(6, 6).copy_(h)),
        "copy in the model writes its units into another tensor",
    ),
    "GRU": (lambda: mlp(lambda m, h: m.gru(h)[0], gru=nn.GRU(6, 6)), f"in 'gru' {KNOWN}"),
    "hook": (hooked, f"native_layer_norm {ALL}"),
    "patched": (patched, "'a' computes its weights or output anew"),
    "numpy": (lambda: mlp(lambda m, h: torch.from_numpy(h.detach().numpy())), "no layer reads it"),
    # What the trace cannot see, the proof does.
    "hidden": (lambda: mlp(mean_beside), "one more unit that nothing reads changes the outputs by"),
    "no gradient": (
        lambda: mlp(lambda m, h: h.detach()),
        "the outputs do not depend on a new unit's weights in 'a'",
    ),
}

CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, str]]] = {
    "output": (mlp, ROWS, {"b": "the model returns it"}),
    "heads": (
        models.attention,
        TOKENS,
        dict.fromkeys("qkv", HEADS),
    ),
    "one head": (
        lambda: models.attention(num_heads=1),
        TOKENS,
        {"q": "multiplies its units by others or by fixed weights"},
    ),
    "grouped queries": (
        grouped_queries,
        TOKENS,
        dict.fromkeys("qkv", "the model has several numbers of heads, as of grouped queries"),
    ),
    "two numbers of heads": (
        lambda: models.attention(num_heads=2, num_kv_heads=4),
        TOKENS,
        {"q": "the model has several numbers of heads"},
    ),
    "a table with a head on an axis": (placed_by_a_table, TOKENS, {"qkv": FIXED}),
    "heads in the shape of the input": (
        width_of_the_input,
        TOKENS,
        {"qkv": "the model fails with one more unit: shape '[3, 5, 8]' is invalid"},
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        TOKENS,
        {
            "linear2": "add in the model joins its units with a tensor that cannot grow",
            "self_attn.out_proj": "'self_attn' reads the weights of 'self_attn.out_proj' directly",
        },
    ),
    "normed stream": (
        normed_stream,
        TOKENS,
        {"stem": "native_layer_norm in 'norm' reads all its units at once"},
    ),
    "tied": (
        tied,
        torch.randint(0, 10, (3, 5)),
        {"mlp.2": "the weights of 'head' are tied to 'table'"},
    ),
    "weights read directly": (
        reads_rows,
        ROWS,
        {"a": "the model reads the weights of 'a' directly"},
    ),
    "concatenation": (
        lambda: Written(
            lambda m, x: m.b(torch.cat([x, m.a(x)], 1)),
            a=nn.Conv2d(3, 6, 3, padding=1),
            b=nn.Conv2d(9, 4, 3),
        ),
        IMAGES,
        {"a": "cat in the model concatenates its units with others"},
    ),
    "grouped": (
        lambda: convolutions(lambda m, h: m.g(h), g=nn.Conv2d(8, 8, 3, padding=1, groups=2)),
        IMAGES,
        {"a": "convolution in 'g' is grouped", "g": "'g' is a grouped convolution"},
    ),
    "depthwise on places": (
        lambda: Written(
            lambda m, x: m.c(m.b(m.a(x).flatten(1, 2)[..., None])),
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(48, 48, 1, groups=48),
            c=nn.Conv2d(48, 2, 1),
        ),
        IMAGES,
        {"a": "'b' convolves each of a unit's places by itself"},
    ),
    "called twice": (recurrent, ROWS, {"into": "'step' is called several times in one pass"}),
    "group norm": (
        lambda: convolutions(lambda m, h: m.norm(h), norm=nn.GroupNorm(2, 8)),
        IMAGES,
        {"a": f"native_group_norm in 'norm' {KNOWN}"},
    ),
    "outer product": (outer_product, ROWS, dict.fromkeys("ab", HEADS)),
    "weight norm": (
        normed_weights,
        ROWS,
        {"a": f"in 'b' {KNOWN}", "b": "'b' computes its weights or output anew"},
    ),
    "fixed shape": (
        fixed_shape,
        IMAGES,
        {"a": "the model fails with one more unit: shape '[-1, 384]' is invalid"},
    ),
}


@pytest.mark.parametrize("name", [*CASES, *BETWEEN])
def test_refused_by_name(name: str) -> None:
    torch.manual_seed(0)
    if name in BETWEEN:
        make, sentence = BETWEEN[name]
        batch, expected = ROWS, {"a": sentence}
    else:
        make, batch, expected = CASES[name]
    found = esper.sites(make(), batch)
    for site, sentence in expected.items():
        assert sentence in found[site].refused
    assert not set(expected) & {width.name for width in found if not width.refused}


def test_one_width_that_fails_its_proof_leaves_the_others() -> None:
    torch.manual_seed(0)
    parts = [mlp(), mlp(mean_beside), mlp(), mlp(lambda m, h: h.view(-1, 6))]
    model = nn.Sequential(*(layer for part in parts for layer in (part, nn.Linear(4, 8))))
    refused = {w.name: w.refused for w in esper.sites(model, ROWS) if w.refused}
    assert list(refused) == ["2.a", "6.a", "7"]
    assert "changes the outputs" in refused["2.a"]
    assert "fails with one more unit" in refused["6.a"]


def test_kernels_do_not_grow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 4))
    layer = hosts.wrapped(model, "2", 2, ROWS)
    refused = "'2' is wrapped, and a kernel beside it would not grow with it"
    assert [w.refused for w in esper.sites(model, ROWS)][:2] == [refused, refused]
    hosts.grow(layer, 0, SeedState.FOSSILIZED)
    assert [w.refused for w in esper.sites(model, ROWS)][:2] == [refused, refused]


def test_a_width_beside_none_of_the_wrapped_layers() -> None:
    torch.manual_seed(0)
    between = [nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh()]
    model = esper.wrap(nn.Sequential(*between, nn.Linear(5, 2)), ["0"])
    assert [w.name for w in esper.sites(model, ROWS) if not w.refused] == ["2", "4"]
    model = esper.wrap(nn.Sequential(nn.Sequential(*between), nn.Linear(5, 2)), ["0"])
    assert [w.name for w in esper.sites(model, ROWS) if not w.refused] == ["0.0", "0.2"]


class Experts(nn.Module):
    """One of the experts is taken for all of a batch; its input is as wide as the others'."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(4, 8), nn.Linear(4, 6)
        self.experts = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 2)])
        self.last = nn.Linear(6, 2)

    @override
    def forward(self, x: Tensor) -> Tensor:
        expert = self.experts[int(x.sum() > 0)]
        y: Tensor = expert(torch.relu(self.first(x))) + self.last(torch.relu(self.other(x)))
        return y


def test_a_layer_that_the_example_does_not_reach_may_read_what_is_as_wide() -> None:
    found = esper.sites(Experts(), torch.ones(3, 4))
    assert found["first"].refused == "'experts.0', which the example does not reach, may read it"
    assert not found["other"].refused
