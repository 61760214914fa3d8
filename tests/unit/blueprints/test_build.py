import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import esper
from esper.blueprints import (
    BLUEPRINTS,
    build,
    canonical,
    fitting,
    is_placebo,
    size_within,
    smallest,
)
from esper.contracts.errors import ConfigError, KernelError
from esper.contracts.seeds import LayerSpec

LINEAR = LayerSpec(kind="features", in_size=16, out_size=32, layer_type="Linear")


def test_what_fits_which_layer() -> None:
    vector = ["lowrank", "lora", "bottleneck", "glu", "gate", "bias"]
    assert fitting(LINEAR) == vector
    assert fitting(LayerSpec(kind="features", in_size=8, out_size=8)) == [*vector, "scale"]
    assert fitting(LayerSpec(kind="sequence", in_size=8, out_size=8)) == [
        *vector,
        "scale",
        "attention",
        "causal_mixer",
    ]
    same = LayerSpec(kind="conv2d", in_size=8, out_size=8, in_extent=(5, 5), out_extent=(5, 5))
    conv = ["conv_bottleneck", "conv_block", "depthwise"]
    assert fitting(same) == ["scale", *conv, "se"]
    half = LayerSpec(kind="conv1d", in_size=8, out_size=8, in_extent=(8,), out_extent=(4,))
    assert fitting(half) == conv
    assert fitting(LayerSpec(kind="graph", in_size=8, out_size=8)) == []


def test_a_placebo_is_built_where_it_is_named_and_the_examples_are_known() -> None:
    assert [name for name in BLUEPRINTS.names() if is_placebo(name)] == ["placebo"]
    assert smallest("placebo", LINEAR) == smallest("bottleneck", LINEAR)
    assert smallest("placebo", replace(LINEAR, layout="TBF")) == smallest("bottleneck", LINEAR)
    with pytest.raises(KernelError, match="which axis has the examples is not known"):
        smallest("placebo", replace(LINEAR, layout="NNF"))


def test_an_unfit_blueprint_names_the_layer_and_those_that_fit() -> None:
    with pytest.raises(KernelError) as caught:
        build("attention", LINEAR, budget=500, seed=0)
    assert str(caught.value) == (
        "blueprint 'attention' is for sequence layers, not for a features layer "
        "(Linear, 16 -> 32). Blueprints that fit this layer: lowrank, lora, bottleneck, glu, gate, "
        "bias"
    )
    with pytest.raises(KernelError, match="changes the shape"):
        smallest("scale", LINEAR)
    with pytest.raises(KernelError, match="sizes >= 1"):
        build("glu", LayerSpec(kind="features", in_size=0, out_size=3), budget=9, seed=0)


def test_an_unknown_name_or_setting_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'bottleneck'"):
        build("botleneck", LINEAR, budget=500, seed=0)
    with pytest.raises(ConfigError, match="Did you mean 'causal'"):
        BLUEPRINTS.create("attention", casual=False)
    with pytest.raises(ConfigError, match="Did you mean 'gelu'"):
        BLUEPRINTS.create("bottleneck", activation="gello")
    with pytest.raises(ConfigError, match="window is 0"):
        BLUEPRINTS.create("causal_mixer", window=0)


@pytest.mark.parametrize("budget", [-1, 0, 65])
def test_a_budget_too_small_says_what_is_needed(budget: int) -> None:
    assert smallest("glu", LINEAR) == 66
    with pytest.raises(KernelError) as caught:
        build("glu", LINEAR, budget=budget, seed=0)
    assert str(caught.value) == (
        f"a budget of {budget} parameters is too small for blueprint 'glu' on a features layer "
        "(Linear, 16 -> 32): its smallest kernel has 66"
    )


def test_rank_ends_where_more_would_compute_nothing_more() -> None:
    kernel = build("lowrank", LINEAR, budget=10**9, seed=0)
    assert sum(p.numel() for p in kernel.parameters()) == 16 * (16 + 32)


def test_scale_takes_what_it_needs_of_any_budget() -> None:
    same = LayerSpec(kind="features", in_size=8, out_size=8)
    kernel = build("scale", same, budget=10_000, seed=0)
    assert sum(p.numel() for p in kernel.parameters()) == 16
    assert [name for name in BLUEPRINTS.names() if BLUEPRINTS.load(name).fixed_size] == [
        "bias",
        "scale",
    ]


def test_weights_are_the_same_in_every_dtype_up_to_rounding() -> None:
    single = build("glu", LINEAR, budget=500, seed=3).state_dict()
    double = build("glu", LINEAR, budget=500, seed=3, dtype=torch.float64).state_dict()
    assert all(torch.equal(single[key].double(), double[key]) for key in single)


def test_torch_defaults_are_followed_and_a_given_device_wins() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        kernel = build("lowrank", LINEAR, budget=500, seed=0)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in kernel.parameters()} == {torch.float64}
    with torch.device("meta"):
        assert next(build("lowrank", LINEAR, budget=500, seed=0).parameters()).is_meta
        given = build("lowrank", LINEAR, budget=500, seed=0, device="cpu")
    assert next(given.parameters()).device.type == "cpu"


def test_a_kernel_built_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        kernel = build("lowrank", LINEAR, budget=500, seed=0)
    kernel(torch.ones(2, 16)).sum().backward()
    assert all(p.grad is not None for p in kernel.parameters())


def test_hidden_values_have_the_scale_of_the_input() -> None:
    spec = LayerSpec(kind="features", in_size=256, out_size=256)
    state = build("lowrank", spec, budget=100_000, seed=0).state_dict()
    assert float(state["down.weight"].var()) == pytest.approx(1 / 256, rel=0.05)


def test_the_table_is_read_without_torch() -> None:
    program = (
        "import sys; from esper.blueprints import BLUEPRINTS; "
        "print(len(BLUEPRINTS.names()), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(len(BLUEPRINTS.names())), "False"]


def test_a_share_of_the_budget_is_part_of_a_name() -> None:
    whole, quarter = (size_within(name, LINEAR, budget=800) for name in ("glu", "glu@1/4"))
    assert quarter <= 200 < whole <= 800
    assert count(build("glu@0.25", LINEAR, budget=800, seed=0)) == quarter
    assert smallest("glu@1/4", LINEAR) == smallest("glu", LINEAR)
    # As good as any kernel, where the share itself is too little for one.
    assert size_within("glu@1/100", LINEAR, budget=800) == smallest("glu", LINEAR)
    with pytest.raises(KernelError, match="too small for blueprint 'glu'"):
        build("glu@1/2", LINEAR, budget=10, seed=0)
    assert BLUEPRINTS.create("glu").share == BLUEPRINTS.create("glu@1").share == 1.0
    assert is_placebo("placebo@1/2")


@pytest.mark.parametrize("text", ["2", "0", "-1", "1/0", "x", "", "1e-9", "0.0", "1/2/3", " 1"])
def test_a_share_that_is_none_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ConfigError, match=r"as glu@1/4|raise growth\.kernel_budget"):
        esper.wrap(nn.Sequential(nn.Linear(4, 4)), ["0"], [f"glu@{text}"])


def test_spellings_of_one_share_are_one_blueprint() -> None:
    seeds = ["glu@0.25", "glu@2/8", "glu@1.0", "glu@1/3", "glu@0.0625", "glu@1/12345"]
    layer = esper.wrap(nn.Sequential(nn.Linear(4, 4)), ["0"], seeds).get_submodule("0")
    names = layer.seed_blueprints
    assert names == ("glu@1/4", "glu@1/4", "glu", "glu@1/3", "glu@1/16", "glu@1/12345")
    assert tuple(map(canonical, names)) == names


def test_the_base_of_a_share_is_looked_up() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'glu'"):
        esper.wrap(nn.Sequential(nn.Linear(4, 4)), ["0"], ["gluu@1/2"])


def count(kernel: nn.Module) -> int:
    return sum(parameter.numel() for parameter in kernel.parameters())
