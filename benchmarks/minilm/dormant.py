"""What seeds cost while they sleep: steps of a wrapped model beside those of a plain one."""

from statistics import median
from time import process_time

from torch import nn

import esper
from benchmarks.minilm.methods import (
    BATCH_SIZE,
    EXAMPLES,
    Parts,
    Upper,
    batches,
    host,
    losses,
    over,
)

_NEVER = 10**6
_STEPS = EXAMPLES // BATCH_SIZE


def rows(upper: Upper, parts: Parts) -> list[tuple[str, str, str]]:
    """Times of the processor; the two take turns batch by batch, both fine-tuned in full."""
    plain, seeded = host(upper, 0, full=True), host(upper, 0, full=True)
    names = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n != "head"]
    esper.wrap(seeded, names)
    optimizers = [over(model, 1e-5) for model in (plain, seeded)]
    tamiyo = esper.Tamiyo(
        seeded,
        optimizers[1],
        loss_fn=losses,
        holdout=parts.validation,
        config={"growth": {"warmup_epochs": _NEVER}},
    )
    ratios, probes, spent = list[float](), 0.0, 0.0
    times = [0.0, 0.0]
    for number, batch in enumerate(batches(parts.train, 0), start=1):
        for at in (0, 1) if number % 2 else (1, 0):
            model, begun = (plain, seeded)[at], process_time()
            optimizers[at].zero_grad()
            losses(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizers[at].step()
            times[at] += process_time() - begun
        begun = process_time()
        tamiyo.on_batch_end(batch)
        probes += process_time() - begun
        if number % _STEPS == 0:
            ratios.append(times[1] / times[0])
            spent += times[1]
            times = [0.0, 0.0]
    return [
        (
            f"a step, {len(names)} layers of four dormant seeds",
            f"{median(ratios):.3f} x plain",
            f"goal 1.02; epochs {min(ratios):.3f} to {max(ratios):.3f}",
        ),
        ("probes", f"{1 + probes / spent:.3f} x", "goal 1.02 of a run's steps"),
    ]
