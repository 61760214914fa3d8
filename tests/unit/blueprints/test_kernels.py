"""Each kernel against its formula, written out by hand from the source that its docstring names."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.blueprints import BLUEPRINTS, build
from esper.contracts.seeds import LayerSpec
from esper.testing.blueprint_laws import awaken, example

FEATURES = LayerSpec(kind="features", in_size=7, out_size=5)
SEQUENCE = LayerSpec(kind="sequence", in_size=7, out_size=5)
IMAGE = LayerSpec(kind="conv2d", in_size=7, out_size=5, in_extent=(6, 6), out_extent=(6, 6))
SIGNAL = LayerSpec(kind="conv1d", in_size=7, out_size=7, in_extent=(6,), out_extent=(6,))


@pytest.mark.parametrize(
    ("name", "spec", "width", "parameters"),
    [
        ("lowrank", FEATURES, 3, 3 * (7 + 5)),
        ("bottleneck", FEATURES, 3, 3 * (7 + 5 + 1)),
        ("glu", FEATURES, 3, 3 * (2 * 7 + 5 + 2)),
        ("gate", FEATURES, 3, 3 * (7 + 5) + 7 + 1),
        ("scale", SIGNAL, 1, 2 * 7),
        ("attention", SEQUENCE, 3, 3 * (3 * 7 + 5)),
        ("causal_mixer", SEQUENCE, 3, 3 * (7 + 4 + 1 + 5)),
        ("conv_bottleneck", IMAGE, 1, (7 + 1) + (9 + 1) + 5),
        ("conv_bottleneck", IMAGE, 4, 2 * (7 + 1) + 3 * (2 * 9 + 1) + 3 * 5),
        ("conv_block", IMAGE, 3, 3 * (7 * 9 + 1 + 5)),
        ("depthwise", IMAGE, 3, 7 * 9 + 3 * (7 + 1 + 5)),
        ("se", SIGNAL, 3, 3 * (2 * 7 + 1) + 7),
        ("placebo", FEATURES, 3, 3 * (7 + 5 + 1)),
        ("placebo", IMAGE, 3, 3 * (7 * 9 + 1 + 5)),
    ],
)
def test_parameter_formula(name: str, spec: LayerSpec, width: int, parameters: int) -> None:
    assert BLUEPRINTS.create(name).count(spec, width) == parameters


def made(name: str, spec: LayerSpec, **settings: object) -> tuple[nn.Module, dict[str, Tensor]]:
    blueprint = BLUEPRINTS.create(name, **settings)
    kernel = awaken(blueprint.build(spec, budget=20 * blueprint.count(spec, 1), seed=0))
    return kernel, kernel.state_dict()


def test_lowrank() -> None:
    kernel, p = made("lowrank", FEATURES)
    x = example(FEATURES)
    assert torch.allclose(kernel(x), x @ p["down.weight"].T @ p["up.weight"].T, atol=1e-5)


def test_bottleneck_of_relus_is_a_wider_hidden_layer() -> None:
    spec = LayerSpec(kind="features", in_size=7, out_size=5, layer_type="Sequential")
    block = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 5))
    awaken(block)
    kernel, p = made("bottleneck", spec, activation="relu")
    host = block.state_dict()
    wide_in = torch.cat([host["0.weight"], p["down.weight"]])
    wide_bias = torch.cat([host["0.bias"], p["down.bias"]])
    wide_out = torch.cat([host["2.weight"], p["up.weight"]], dim=1)
    x = example(spec)
    wider = F.linear(F.linear(x, wide_in, wide_bias).relu(), wide_out, host["2.bias"])
    assert torch.allclose(block(x) + kernel(x), wider, atol=1e-4)


def test_glu() -> None:
    kernel, p = made("glu", FEATURES)
    x = example(FEATURES)
    value, gate = F.linear(x, p["down.weight"], p["down.bias"]).chunk(2, dim=-1)
    assert torch.allclose(kernel(x), (value * gate.sigmoid()) @ p["up.weight"].T, atol=1e-5)


def test_gate_has_one_switch_for_the_whole_map() -> None:
    kernel, p = made("gate", FEATURES)
    x = example(FEATURES)
    switch = (x @ p["switch.weight"].T + p["switch.bias"]).sigmoid()
    assert switch.shape == (3, 1)
    expected = switch * (x @ p["down.weight"].T @ p["up.weight"].T)
    assert torch.allclose(kernel(x), expected, atol=1e-5)


def test_scale_of_a_picture_is_per_channel() -> None:
    spec = LayerSpec(kind="conv2d", in_size=4, out_size=4, in_extent=(2, 3), out_extent=(2, 3))
    kernel, p = made("scale", spec)
    assert p["scale"].shape == (4, 1, 1)
    x = example(spec, extent=(5, 4))
    gain, offset = (p[name].expand(4, 5, 4) for name in ("scale", "shift"))
    assert torch.allclose(kernel(x), x * gain + offset)


@pytest.mark.parametrize("causal", [True, False])
def test_attention(causal: bool) -> None:
    kernel, p = made("attention", SEQUENCE, causal=causal)
    x = example(SEQUENCE)
    query, key, value = (x @ p["down.weight"].T).chunk(3, dim=-1)
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    expected = scores.softmax(-1) @ value @ p["up.weight"].T
    assert torch.allclose(kernel(x), expected, atol=1e-4)


def test_attention_that_is_not_causal_reads_the_future() -> None:
    kernel, _ = made("attention", SEQUENCE, causal=False)
    x = example(SEQUENCE)
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(kernel(changed)[:, 0], kernel(x)[:, 0])


def test_causal_mixer_reads_its_window_and_no_further() -> None:
    kernel, p = made("causal_mixer", SEQUENCE, window=2)
    x = example(SEQUENCE)
    before = torch.cat([torch.zeros(3, 1, 7), x[:, :-1]], dim=1)
    taps, down = p["mix.weight"][:, 0], p["down.weight"].T
    mixed = (before @ down) * taps[:, 0] + (x @ down) * taps[:, 1] + p["mix.bias"]
    assert torch.allclose(kernel(x), F.gelu(mixed) @ p["up.weight"].T, atol=1e-4)


def test_conv_bottleneck() -> None:
    kernel, p = made("conv_bottleneck", IMAGE, activation="tanh")
    x = example(IMAGE)
    hidden = F.conv2d(x, p["down.weight"], p["down.bias"]).tanh()
    hidden = F.conv2d(hidden, p["spatial.weight"], p["spatial.bias"], padding=1).tanh()
    assert torch.allclose(kernel(x), F.conv2d(hidden, p["up.weight"]), atol=1e-4)


def test_conv_block() -> None:
    kernel, p = made("conv_block", IMAGE)
    x = example(IMAGE)
    hidden = F.gelu(F.conv2d(x, p["spatial.weight"], p["spatial.bias"], padding=1))
    assert torch.allclose(kernel(x), F.conv2d(hidden, p["up.weight"]), atol=1e-4)


def test_depthwise() -> None:
    kernel, p = made("depthwise", IMAGE)
    x = example(IMAGE)
    filtered = F.conv2d(x, p["spatial.weight"], padding=1, groups=7)
    hidden = F.gelu(F.conv2d(filtered, p["mix.weight"], p["mix.bias"]))
    assert torch.allclose(kernel(x), F.conv2d(hidden, p["up.weight"]), atol=1e-4)


def test_se_turns_whole_channels() -> None:
    kernel, p = made("se", SIGNAL)
    x = example(SIGNAL, extent=(9,))
    down, up = p["excite.down.weight"][..., 0].T, p["excite.up.weight"][..., 0].T
    hidden = F.gelu(x.mean(-1) @ down + p["excite.down.bias"])
    factor = (hidden @ up + p["excite.up.bias"]).tanh()
    assert torch.allclose(kernel(x), x * factor[..., None], atol=1e-5)


def test_placebo_reads_other_examples() -> None:
    """Around a circle by sin(n²), n from 1: -.76 (2), -.29 (4), .41 (3), .84 (1)."""
    kernel, x = awaken(build("placebo", FEATURES, budget=39, seed=0)), example(FEATURES, batch=4)
    inner = kernel.get_submodule("kernel")
    y = [inner(one) for one in x]
    expected = torch.stack([y[2] - y[3], y[0] - y[2], y[3] - y[1], y[1] - y[0]])
    assert torch.allclose(kernel(x), expected, atol=1e-6)
