"""The batched lab hears what the product hears."""

from dataclasses import replace

import pytest
import torch

from benchmarks import auditions
from benchmarks.lab.kernels import KINDS, built
from benchmarks.lab.runs import Lab, table_of
from esper.blueprints import build
from esper.contracts.seeds import LayerSpec
from esper.execution.training.whitening import whitening
from esper.studies.trained.cells import ORACLE, runs
from esper.studies.trained.setups import SETUPS
from esper.studies.trained.training import train_run

DIGITS = replace(SETUPS["digits"], epochs=5)
"""Two epochs of warm-up, two in the shadow, one of blending."""


@pytest.mark.parametrize("at", range(len(KINDS)))
def test_kernels_of_any_kind_compute_what_the_products_do(at: int) -> None:
    spec = LayerSpec(kind="features", in_size=5, out_size=7)
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)) + 1.0
    kernels = built(spec, KINDS, [[1, 2, 3, 4]], 60, x[None])
    module = build(KINDS[at], spec, budget=60, seed=at + 1)
    with whitening(module):
        module(x)
    up = module.get_parameter("up.weight")
    down = module.get_parameter("down.weight")[: up.shape[1]]
    torch.testing.assert_close(kernels.V_RKwF[0, at, : len(down)], down)
    torch.nn.init.uniform_(up, generator=torch.Generator().manual_seed(1))
    kernels.put(0, at, KINDS[at], module)
    expected = module(x)
    torch.testing.assert_close(kernels.each(x[None, None])[0, at], expected)
    alone = torch.zeros(len(KINDS))
    alone[at] = 0.5
    torch.testing.assert_close(kernels.together(x[None, None], alone)[0, 0], 0.5 * expected)


@pytest.mark.trains
def test_two_runs_at_once_hear_and_earn_what_the_product_does() -> None:
    found = Lab(DIGITS, [3, 1]).run()
    oracle = next(run for run in runs(DIGITS, 1, [ORACLE]) if run.cell.name == ORACLE)
    product, _ = train_run(oracle, None)
    (point,), (graft,) = found[1], product.grafts
    heard = {(one["layer"], one["seed"]): (one["gain"], one["stderr"]) for one in product.auditions}
    assert point.heard.keys() == heard.keys()
    assert len(heard) == 12
    for arm, numbers in heard.items():
        assert point.heard[arm] == pytest.approx(numbers, abs=1e-5)
    assert max(gain for gain, _ in heard.values()) > 0.01, "far above the tolerance"
    assert point.best == (graft["layer_name"], graft["seed_idx"])
    assert point.reward == pytest.approx(graft["reward"], abs=1e-5)
    assert point.kept == graft["kept"]
    shares = [row[0] for row in auditions.rows({"digits": list(map(table_of, found))})]
    assert shares[0] == "digits: an average seed, 2 runs"
    assert len(shares) == 3
