"""Ways to adapt the upper layers of MiniLM and a new head, all on the same batches.

Each returns the model and the number of parameters beside the head.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

import esper
from benchmarks.minilm.sentences import FROZEN_BELOW, Sentences
from benchmarks.transfer import fit, over

EXAMPLES, BATCH_SIZE, EPOCHS = 400, 20, 5
"""Examples to train on, as many held out; examples of a batch; epochs."""

Batch = tuple[Tensor, Tensor, Tensor]
Method = Callable[["Upper", "Parts", int, float], tuple[nn.Module, int]]


@dataclass(frozen=True)
class Parts:
    """Examples of one run seed, in batches."""

    train: Sentences
    validation: list[Batch]
    test: list[Batch]


@final
class Upper(nn.Module):
    """Upper layers of the model, the mean of a sentence's tokens, and a head of two classes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(model.encoder.layer[FROZEN_BELOW:]))
        self.head = nn.Linear(model.config.hidden_size, 2)

    @override
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, 2) of hidden states (B, T, D) under a mask (B, T)."""
        bias = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in self.layers:
            found = layer(hidden, attention_mask=bias)
            hidden = found[0] if isinstance(found, tuple) else found
        weights = mask[..., None].to(hidden.dtype)
        scores: Tensor = self.head((hidden * weights).sum(1) / weights.sum(1))
        return scores


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each sentence, in nats."""
    return F.cross_entropy(model(*batch[:2]), batch[2], reduction="none")


def parts_of(sentences: Sentences, seed: int, tested: int) -> Parts:
    """Examples that the run seed draws; the last ones are the test part of every seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sentences.targets) - tested, generator=generator)
    train, validation = order[:EXAMPLES], order[EXAMPLES : 2 * EXAMPLES]
    test = torch.arange(len(sentences.targets) - tested, len(sentences.targets))
    return Parts(
        Sentences(*_chosen(sentences, train)),
        _split(sentences, validation),
        _split(sentences, test),
    )


def _chosen(sentences: Sentences, rows: Tensor) -> Batch:
    return sentences.hidden[rows], sentences.mask[rows], sentences.targets[rows]


def _split(sentences: Sentences, rows: Tensor) -> list[Batch]:
    return [_chosen(sentences, some) for some in rows.split(2 * BATCH_SIZE)]


def batches(part: Sentences, seed: int) -> Iterator[Batch]:
    """The training batches of all epochs, the same for every method."""
    generator = torch.Generator().manual_seed(seed + 999)
    for _ in range(EPOCHS):
        for rows in torch.randperm(EXAMPLES, generator=generator).split(BATCH_SIZE):
            yield _chosen(part, rows)


def host(upper: Upper, seed: int, *, full: bool = False) -> Upper:
    """A frozen copy with a new head."""
    made = copy.deepcopy(upper).requires_grad_(full).eval()  # no dropout, for any method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made.head.reset_parameters()
    made.head.requires_grad_(True)
    return made


def train(
    model: nn.Module, parts: Parts, seed: int, optimizer: Any, end: Callable[[Batch], Any] = id
) -> None:
    """Train on the batches of a run seed."""
    fit(model, list(batches(parts.train, seed)), losses, optimizer, seed=seed, end=end)


def tuned(*, full: bool) -> Method:
    """The host in full, or its head alone."""

    def run(upper: Upper, parts: Parts, seed: int, rate: float) -> tuple[nn.Module, int]:
        model = host(upper, seed, full=full)
        train(model, parts, seed, over(model, rate))
        return model, _beside_head(model)

    return run


def lora(rank: int) -> Method:
    """LoRA by peft beside every linear layer but the head."""

    def run(upper: Upper, parts: Parts, seed: int, rate: float) -> tuple[nn.Module, int]:
        import peft  # noqa: PLC0415 (slow to import)

        model = host(upper, seed)
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head"]
        config = peft.LoraConfig(r=rank, target_modules=names, modules_to_save=["head"])
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(model, config)  # type: ignore[arg-type]
        train(adapted.eval(), parts, seed, over(adapted, rate))
        return adapted, _beside_head(adapted)

    return run


def grown(budget: float | None) -> Method:
    """Low-rank kernels, placed by the gradient; their number found where there is no budget."""

    def run(upper: Upper, parts: Parts, seed: int, rate: float) -> tuple[nn.Module, int]:
        model = host(upper, seed)
        optimizer = over(model, rate)
        given: dict[str, Any] = {"holdout": parts.validation, "budget": budget, "seed": seed}
        tamiyo = esper.adapt(model, optimizer=optimizer, loss_fn=losses, **given)
        train(model, parts, seed, optimizer, tamiyo.on_batch_end)
        tamiyo.finish()
        return model, tamiyo.used

    return run


def _beside_head(model: nn.Module) -> int:
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    return sum(size for name, size in trained.items() if "head" not in name)
