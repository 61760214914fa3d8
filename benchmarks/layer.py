"""Cost of a wrapped layer: dormant beside the plain one, active beside the same sum by hand."""

from collections.abc import Callable
from copy import deepcopy
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.contracts.config import Config, Growth
from esper.contracts.seeds import LayerSpec, SeedState
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import Kernel, Recipe
from esper.execution.surgery import wrap
from esper.services.tamiyo.tamiyo import Tamiyo

PAIRS = 1500
BATCH = 64


def rows() -> list[tuple[str, str, str]]:
    """Ratios, medians over pairs that alternate in order."""
    torch.manual_seed(0)
    found = []
    for threads in (1, torch.get_num_threads()):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        suffix = f", {threads} thread(s)"
        found += [_dormant(suffix), _probed(suffix), _active(suffix)]
        torch.set_num_threads(before)
    return found


def _dormant(suffix: str) -> tuple[str, str, str]:
    plain = nn.Linear(512, 512)
    wrapped = KasminaLayer(deepcopy(plain), name="fc", seeds=["glu"] * 4)
    x = torch.randn(BATCH, 512)
    ratio, base_us = _ratio(lambda: wrapped(x), lambda: plain(x))
    what = f"forward, Linear(512,512), batch 64, all seeds dormant{suffix}"
    return what, f"{ratio:.3f} x plain ({base_us:.0f} µs)", "<= 1.02 x"


def _probed(suffix: str) -> tuple[str, str, str]:
    """Probes on: a Tamiyo watches the model, and probes every 50 batches."""
    plain = nn.Sequential(nn.Linear(512, 512))
    model = wrap(deepcopy(plain), ["0"], ["glu"])
    x, y = torch.randn(BATCH, 512), torch.randn(BATCH, 512)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(dim=1)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = Config(growth=Growth(probe_every=50))
    tamiyo = Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=[(x, y)], config=config)
    tamiyo.on_batch_end((x, y))
    ratio, base_us = _ratio(lambda: model(x), lambda: plain(x))
    what = f"the same under a Tamiyo with its probes on{suffix}"
    return what, f"{ratio:.3f} x plain ({base_us:.0f} µs)", "<= 1.02 x"


def _active(suffix: str) -> tuple[str, str, str]:
    layer = KasminaLayer(nn.Linear(512, 512), name="fc", seeds=["bottleneck"])
    spec = LayerSpec(kind="features", in_size=512, out_size=512)
    recipe = Recipe(blueprint="bottleneck", spec=spec, budget=40_000, seed=0)
    layer.load_kernel(0, Kernel(module=recipe.build(), kernel_id="k", recipe=recipe))
    layer.advance(0, SeedState.TRAINING)
    layer.advance(0, SeedState.BLENDING)
    layer.set_alpha(0, 0.5)
    host, kernel = layer.host, layer.seed(0).as_kernel().module
    alpha, x = layer.seed(0).alpha, torch.randn(BATCH, 512)
    ratio, base_us = _ratio(lambda: layer(x), lambda: host(x) + alpha * kernel(x))
    what = f"forward, one active seed (bottleneck of 40,000){suffix}"
    return what, f"{ratio:.3f} x by hand ({base_us:.0f} µs)", "<= 1.10 x"


def _ratio(ours: Callable[[], object], base: Callable[[], object]) -> tuple[float, float]:
    """Median of paired ratios, and median time of the baseline in microseconds."""
    ratios, bases = [], []
    with torch.no_grad():
        for _ in range(100):
            ours(), base()
        for pair in range(PAIRS):
            first, second = (ours, base) if pair % 2 else (base, ours)
            started = perf_counter()
            first()
            between = perf_counter()
            second()
            ended = perf_counter()
            one, two = between - started, ended - between
            ours_s, base_s = (one, two) if pair % 2 else (two, one)
            ratios.append(ours_s / base_s)
            bases.append(base_s)
    return median(ratios), median(bases) * 1e6


if __name__ == "__main__":
    for row in rows():
        print(*row, sep=" | ")
