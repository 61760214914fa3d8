"""Small models whose widths can be counted by hand."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override


class Written(nn.Module):
    """A model whose forward is a function of the model and its input."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, module in modules.items():
            self.add_module(name, module)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.written(self, *args, **kwargs)


class Conv1D(nn.Module):
    """The linear layer of transformers' GPT-2: its weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.1)
        self.bias = nn.Parameter(torch.zeros(nf))

    @override
    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class LowRank(nn.Module):
    """A linear layer with a term of low rank beside it, as an adapter has."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A block of a ResNet, written with functions."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.n1 = nn.BatchNorm2d(outputs)
        self.c2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.n2 = nn.BatchNorm2d(outputs)
        self.down = None
        if inputs != outputs:
            down = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.down = nn.Sequential(down, nn.BatchNorm2d(outputs))

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.n1(self.c1(x)), inplace=True)
        y = self.n2(self.c2(y))
        y += x if self.down is None else self.down(x)
        return F.relu(y)


def resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return Written(
        lambda m, x: m.head(m.b2(m.b1(m.stem(x))).mean((2, 3))),
        stem=stem,
        b1=Residual(4, 4),
        b2=Residual(4, 6, 2),
        head=nn.Linear(6, 10),
    )


def mobile() -> nn.Module:
    block = nn.Sequential(
        nn.Conv2d(4, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 4, 1, bias=False),
        nn.BatchNorm2d(4),
    )

    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        return m.head(F.adaptive_avg_pool2d(x + m.block(x), 1).flatten(1))

    return Written(forward, stem=nn.Conv2d(3, 4, 3), block=block, head=nn.Linear(4, 10))


def swiglu() -> nn.Module:
    return Written(
        lambda m, x: x + m.down(F.silu(m.gate(x)) * m.up(x)),
        gate=nn.Linear(8, 12),
        up=nn.Linear(8, 12),
        down=nn.Linear(12, 8),
    )


def fused_swiglu() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        gate, up = m.both(x).chunk(2, -1)
        return x + m.down(F.silu(gate) * up)

    return Written(forward, both=nn.Linear(8, 12), down=nn.Linear(6, 8))


# B examples, T tokens, F features, H heads, D places of each.


def attention(inner: int = 8, **said: int) -> Any:
    """Attention of 2 heads; what is ``said`` are attributes of it."""

    def forward(m: Any, x_BTF: Tensor) -> Any:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], getattr(m, "num_heads", 2), -1).transpose(1, 2)

        q_BHTD, k_BHTD, v_BHTD = (split(layer(x_BTF)) for layer in (m.q, m.k, m.v))
        read = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD)
        return m.out(read.transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(8, inner) for name in "qkv"}
    return _said(Written(forward, **layers, out=nn.Linear(inner, 8)), said)


def fused_attention(mix: Callable[[Any, Any], Any], **said: int) -> Any:
    """Attention whose queries, keys and values (B, T, 24) are one layer's output."""

    def forward(m: Any, x_BTF: Tensor) -> Any:
        return m.out(mix(m, m.qkv(x_BTF)))

    return _said(Written(forward, qkv=Conv1D(24, 8), out=nn.Linear(8, 8)), said)


def parts(m: Any, y: Any) -> Any:
    """Three parts, as in GPT-2, whose mask is causal."""
    apart = (part.view(*part.shape[:2], -1, m.head_dim) for part in y.split(m.split_size, 2))
    q_BHTD, k_BHTD, v_BHTD = (part.transpose(1, 2) for part in apart)
    scores = q_BHTD @ k_BHTD.mT / m.head_dim**0.5
    past = torch.ones(*scores.shape[2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~past, -torch.inf).softmax(-1)
    return (weights @ v_BHTD).transpose(1, 2).reshape(*y.shape[:2], m.split_size)


def together(m: Any, y: Tensor) -> Tensor:
    """One view (B, T, 3, H, D), as in timm."""
    qkv = y.reshape(*y.shape[:2], 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)
    q_BHTD, k_BHTD, v_BHTD = qkv.unbind(0)
    read = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD)
    return read.transpose(1, 2).reshape(*y.shape[:2], -1)


def interleaved(m: Any, y: Tensor) -> Tensor:
    """Each head's three parts beside one another, as in GPT-NeoX."""
    heads = y.view(*y.shape[:2], m.num_attention_heads, -1).transpose(1, 2)
    q_BHTD, k_BHTD, v_BHTD = heads.chunk(3, -1)
    read = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD)
    return read.transpose(1, 2).flatten(2)


def flattened(m: Any, y: Tensor) -> Tensor:
    """Heads and examples on one axis, as in fairseq."""
    batch, tokens, _ = y.shape
    apart = (part.transpose(0, 1).contiguous() for part in y.chunk(3, -1))
    q, k, v = (part.view(tokens, batch * m.n_head, -1).transpose(0, 1) for part in apart)
    weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    read = torch.bmm(weights, v).transpose(0, 1).contiguous()
    return read.view(tokens, batch, -1).transpose(0, 1)


def _said(model: Any, said: dict[str, int]) -> Any:
    for name, value in said.items():
        setattr(model, name, value)
    return model


def mlp(between: Callable[[Any, Tensor], Any] = lambda m, h: h, **modules: nn.Module) -> Any:
    """Layers ``a``, of 6 units, and ``b``, with something between them."""
    return Written(
        lambda m, x: m.b(between(m, torch.relu(m.a(x)))),
        a=nn.Linear(8, 6),
        **modules,
        b=nn.Linear(6, 4),
    )


def convolutions(between: Callable[[Any, Tensor], Any], **modules: nn.Module) -> Any:
    """Convolutions ``a``, of 8 channels, and ``b``, with something between them."""
    return Written(
        lambda m, x: m.b(between(m, m.a(x))).flatten(1),
        a=nn.Conv2d(3, 8, 3, padding=1),
        **modules,
        b=nn.Conv2d(8, 4, 3),
    )
