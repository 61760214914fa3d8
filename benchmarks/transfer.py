"""Grown adapters beside LoRA, AdaLoRA and IA3 (peft), Houlsby's, uniform ones and fine-tuning.

The frozen host of the tasks ``transfer`` (mild shift) and ``transfer_far`` (strong shift) is
adapted by 240 examples that the run seed draws, in 144 steps; every method has the same examples,
batches, initial head and cosine schedule, and a learning rate chosen on run seeds 100 to 103
(``best_rate``; those of LoRA of rank 2 to 8 and of the size that is found are not).
Differences are to LoRA of rank 1, paired by run seed, with bootstrap 95 % intervals. Times are of
the processor, everything in. Takes half an hour on a quiet core, so ``make bench`` leaves it out.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import count
from time import process_time
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

import esper
from esper.studies.trained.intervals import mean, ratio
from esper.tasks.base import Batch
from esper.tasks.data_files import load_standardised
from esper.tasks.transfer import Adaptation, Transfer, TransferFar
from esper.tasks.vit import pretrained

EXAMPLES, STEPS, BATCH_SIZE = 240, 144, 30
TASKS: tuple[Adaptation, ...] = (Transfer(), TransferFar())


@dataclass(frozen=True)
class Run:
    """Test loss and accuracy, held-out loss, parameters beside the head, and seconds."""

    loss: float
    accuracy: float
    held_out: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Parts:
    """Examples of one run seed."""

    train: Batch
    validation: Batch
    test: Batch


Method = Callable[[Parts, int, float], tuple[nn.Module, int]]
"""Takes examples, run seed and rate; gives the adapted model, and its parameters."""


def parts_of(task: Adaptation, seed: int) -> Parts:
    """Examples that the run seed draws; all of the test part."""
    generator = torch.Generator().manual_seed(seed)
    found = astuple(load_standardised(task.source, each_feature=False))
    pictures = [(task.picture(inputs), targets) for inputs, targets in found]
    for index in (0, 1):
        chosen = torch.randperm(len(pictures[index][1]), generator=generator)[:EXAMPLES]
        pictures[index] = (pictures[index][0][chosen], pictures[index][1][chosen])
    deviation, center = torch.std_mean(pictures[0][0])
    return Parts(*((((x - center) / deviation), y) for x, y in pictures))


def batches(part: Batch, seed: int) -> Iterator[Batch]:
    """The training batches, the same for every method."""
    generator, left = torch.Generator().manual_seed(seed + 999), STEPS
    while left:
        for chosen in torch.randperm(EXAMPLES, generator=generator).split(BATCH_SIZE)[:left]:
            left -= 1
            yield part[0][chosen], part[1][chosen]


def losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each example, in nats."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def host(seed: int, rank: int = 0) -> nn.Module:
    """The host with a new head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pretrained(rank)


def train(
    model: nn.Module, parts: Parts, seed: int, optimizer: Any, end: Callable[[Batch], Any] = id
) -> None:
    """Train on the batches of a run seed."""
    fit(model, list(batches(parts.train, seed)), losses, optimizer, seed=seed, end=end)


def fit(
    model: nn.Module,
    given: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    optimizer: Any,
    *,
    seed: int,
    end: Callable[[Any], Any] = id,
) -> None:
    """Train with a cosine schedule over the given batches; ``end`` is called after each."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(given))
    torch.manual_seed(seed)
    for batch in given:
        optimizer.zero_grad()
        torch.autograd.backward(loss_fn(model, batch).mean())
        optimizer.step()
        end(batch)
        schedule.step()


def over(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Optimizer over what is trainable."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0, fused=True)


def static(rank: int, *, full: bool = False) -> Method:
    """Our own kernels of one rank beside every layer; rank 0 is the linear probe."""

    def run(parts: Parts, seed: int, rate: float) -> tuple[nn.Module, int]:
        model = host(seed, rank)
        if full:
            model.requires_grad_(True)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        train(model, parts, seed, over(model, rate))
        return model, trained - 490

    return run


def of_peft(kind: str, **settings: Any) -> Method:
    """An adapter of peft beside every linear layer, by the name of its configuration."""

    def run(parts: Parts, seed: int, rate: float) -> tuple[nn.Module, int]:
        import peft  # noqa: PLC0415 (slow to import)

        model = host(seed)
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head"]
        given = {"target_modules": names, "modules_to_save": ["head"], **settings}
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = getattr(peft, f"{kind}Config")(**given)
            model = peft.get_peft_model(model, config)  # type: ignore[arg-type]
        steps = count(1)

        def allocate(batch: Batch) -> None:
            del batch
            model.base_model.update_and_allocate(next(steps))  # type: ignore[operator, union-attr]

        adapts = {"end": allocate} if kind == "AdaLora" else {}
        train(model, parts, seed, over(model, rate), **adapts)
        sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
        for name, parameter in model.named_parameters():
            if "lora_E" in name:  # a rank that AdaLoRA took away is zero
                ranks, left = len(parameter), int(parameter.count_nonzero())
                for other in (name, *(name.replace("lora_E", f"lora_{of}") for of in "AB")):
                    sizes[other] = sizes[other] * left // ranks
        return model, sum(sizes.values()) - 490

    return run


class Houlsby(nn.Module):
    """``y + U gelu(V y + b) + c`` behind a layer, ``U`` and ``c`` zero at birth.

    Source:
        Houlsby et al. (2019), Parameter-Efficient Transfer Learning for NLP, section 2.1.
    """

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.out_features, width)
        self.up = nn.Linear(width, layer.out_features)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + cast("Tensor", self.up(F.gelu(self.down(y))))


def houlsby(width: int) -> Method:
    """A bottleneck behind the attention and the feed-forward of each block."""

    def run(parts: Parts, seed: int, rate: float) -> tuple[nn.Module, int]:
        model = host(seed)
        torch.manual_seed(seed)
        for block in model.get_submodule("blocks").children():
            for name in ("out", "down"):
                setattr(block, name, Houlsby(cast("nn.Linear", block.get_submodule(name)), width))
        train(model, parts, seed, over(model, rate))
        return model, sum(p.numel() for p in model.parameters() if p.requires_grad) - 490

    return run


def grown(budget: float | None, seeds: Sequence[str] = ("lora",)) -> Method:
    """Kernels placed by the gradient."""

    def run(parts: Parts, seed: int, rate: float) -> tuple[nn.Module, int]:
        model = host(seed)
        optimizer = over(model, rate)
        inputs, targets = parts.validation
        holdout = list(zip(inputs.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True))
        given: dict[str, Any] = {"budget": budget, "seeds": seeds, "seed": seed}
        tamiyo = esper.adapt(model, optimizer=optimizer, loss_fn=losses, holdout=holdout, **given)
        train(model, parts, seed, optimizer, tamiyo.on_batch_end)
        tamiyo.finish()
        return model, tamiyo.used

    return run


def best_rate(
    task: Adaptation, name: str, rates: Sequence[float], seeds: Sequence[int] = range(100, 104)
) -> float:
    """Learning rate with the least held-out loss, over run seeds of no reported figure."""
    held_out = {
        rate: sum(measure(task, name, seed, rate).held_out for seed in seeds) for rate in rates
    }
    return min(held_out, key=lambda rate: held_out[rate])


KINDS = ("lora", "bias", "scale", "bottleneck")
ADALORA = {"tinit": 20, "tfinal": 60, "deltaT": 4, "total_step": STEPS}

METHODS: dict[str, tuple[Method, dict[str, float]]] = {
    "LoRA r = 1": (of_peft("Lora", r=1), {"transfer": 2e-2, "transfer_far": 2e-2}),
    "grown, as many": (grown(1.0), {"transfer": 1e-2, "transfer_far": 1e-2}),
    "grown, a third": (grown(0.33), {"transfer": 4e-2, "transfer_far": 2e-2}),
    "uniform, the same kernels": (static(1), {"transfer": 2e-2, "transfer_far": 2e-2}),
    "size found": (grown(None), {"transfer": 1e-2, "transfer_far": 1e-2}),
    "LoRA r = 8": (of_peft("Lora", r=8), {"transfer": 2e-2, "transfer_far": 1e-2}),
    "linear probe": (static(0), {"transfer": 2e-2, "transfer_far": 2e-2}),
    "full fine-tuning": (static(0, full=True), {"transfer": 2e-3, "transfer_far": 2e-3}),
    "AdaLoRA, 2 to 1": (
        of_peft("AdaLora", init_r=2, target_r=1, **ADALORA),
        {"transfer": 1e-2, "transfer_far": 1e-2},
    ),
    "IA3": (
        of_peft("IA3", feedforward_modules=r".*\.down"),
        {"transfer": 1e-2, "transfer_far": 2e-2},
    ),
    "Houlsby, width 4": (houlsby(4), {"transfer": 1e-2, "transfer_far": 1e-2}),
    "grown, four kinds": (grown(1.0, KINDS), {"transfer": 1e-2, "transfer_far": 2e-2}),
    "four kinds, a third": (grown(0.33, KINDS), {"transfer": 1e-2, "transfer_far": 1e-2}),
    "LoRA r = 2": (of_peft("Lora", r=2), {"transfer": 2e-2, "transfer_far": 1e-2}),
    "LoRA r = 4": (of_peft("Lora", r=4), {"transfer": 2e-2, "transfer_far": 1e-2}),
}


def measure(task: Adaptation, name: str, seed: int, rate: float | None = None) -> Run:
    """One adaptation by one method, at its rate or another."""
    parts, (method, rates) = parts_of(task, seed), METHODS[name]
    begun = process_time()
    model, parameters = method(parts, seed, rates[task.name] if rate is None else rate)
    seconds = process_time() - begun
    with torch.no_grad():
        scores = model.eval()(parts.test[0])
        held_out = float(losses(model, parts.validation).mean())
    hits = (scores.argmax(1) == parts.test[1]).float()
    loss = float(F.cross_entropy(scores, parts.test[1]))
    return Run(loss, float(hits.mean()) * 100, held_out, parameters, seconds)


def rows(seeds: int = 10) -> list[tuple[str, str, str]]:
    """Losses and accuracies less those of LoRA r = 1, and times over its."""
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[Run]] = {}
    for seed in range(seeds):
        for task in TASKS:
            for name in METHODS:
                run = measure(task, name, seed)
                found.setdefault((task.name, name), []).append(run)
                print(task.name, name, seed, run, file=sys.stderr, flush=True)
    return table(found)


def table(found: dict[tuple[str, str], Sequence[Run]]) -> list[tuple[str, str, str]]:
    """Rows of the runs of each task and method, paired by place with those of LoRA r = 1."""
    made = []
    for (task, name), runs in found.items():
        base = found[task, "LoRA r = 1"][: len(runs)]
        ours, theirs = (np.array([astuple(one) for one in side]) for side in (runs, base))
        less = [mean(column) for column in (ours - theirs).T]
        value = (
            f"{ours[:, 3].mean():,.0f} parameters: {ours[:, 0].mean():.3f} nats, "
            f"{ours[:, 1].mean():.1f} %"
        )
        beside = (
            f"{less[0].text('+.3f')}, {less[1].text('+.1f')} points, "
            f"{ratio(ours[:, 4], theirs[:, 4]).text('.2f')} x the time"
        )
        made.append((f"{task}: {name} (n = {len(runs)})", value, beside))
    return made
