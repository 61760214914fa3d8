"""While no kernel is blended in, the host is its control, whatever moves in a forward pass."""

import copy
import itertools
import random  # noqa: TID251 (users' own generators)
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState
from tests.unit.services.small_run import SmallRun, host, loss_fn, same, settings, teacher

NEVER_BLENDS = settings(train_epochs=50)


class Part(nn.Module):
    """Middle of a small network, that changes its input by what it keeps."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + 0.01 * self.move(x.detach())
        return y

    def move(self, x: Tensor) -> Any:
        raise NotImplementedError


def isolated(make: Callable[[], nn.Module], **more: Any) -> tuple[SmallRun, SmallRun]:
    """A grown run of three epochs in which nothing is blended, equal to its control."""
    both = []
    for grown in (True, False):
        torch.manual_seed(5)
        model = make()
        layers = tuple(n for n, _ in model.named_modules() if n.rpartition(".")[2] == "fc1")
        given = {k: v() if k == "options" and grown else v for k, v in more.items()}
        given = given if grown else {k: v for k, v in given.items() if k != "options"}
        run = SmallRun(grown=grown, config=NEVER_BLENDS, model=model, layers=layers, **given)
        both.append(run.run(3))
    grown_run, control = both
    states = [s for layer in grown_run.engine.layers.values() for s in layer.seed_states]
    assert SeedState.TRAINING in states
    assert all(v.reward is None for report in grown_run.reports for v in report.verdicts)
    assert same(grown_run.state(), control.state())
    return grown_run, control


# --- what modules keep ----------------------------------------------------------------------------


class Meter:
    def __init__(self) -> None:
        self.count, self.mean = 0, 0.0

    def update(self, value: float) -> float:
        self.count += 1
        self.mean += (value - self.mean) / self.count
        return self.mean


@dataclass
class Record:
    count: int = 0
    seen: list[int] = field(default_factory=list)


class Slots:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Jitter:
    """Draws from generators of its own, as augmentations do."""

    def __init__(self, seed: int) -> None:
        self.numpy, self.old = np.random.default_rng(seed), np.random.RandomState(seed)
        self.python = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        drawn = self.numpy.random() + self.old.rand() + self.python.random()
        return drawn + torch.rand(1, generator=self.torch)


class InObject(Part):
    def __init__(self) -> None:
        super().__init__()
        self.kept, self.record, self.slots = Meter(), Record(), Slots()

    @override
    def move(self, x: Tensor) -> Any:
        self.record.count += 1
        self.record.seen.append(self.record.count)
        self.slots.count += 1
        return self.kept.update(float(x.mean())) + self.record.count + self.slots.count


class InAugmentations(Part):
    def __init__(self) -> None:
        super().__init__()
        self.all = {"jitters": [Jitter(1), Jitter(2)]}

    @override
    def move(self, x: Tensor) -> Any:
        return sum(jitter() for jitter in self.all["jitters"])


class InContainers(Part):
    """As the memory of a transformer or the hidden state of a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.list, self.dict = [torch.zeros(6)], {"keys": {"of": torch.zeros(6)}}
        self.array = np.zeros(6)

    @override
    def move(self, x: Tensor) -> Any:
        self.list[0].mul_(0.9).add_(x.mean(0))
        self.dict["keys"]["of"] = 0.9 * self.dict["keys"]["of"] + x.mean(0)
        self.array += x.mean(0).numpy()
        return self.list[0] + self.dict["keys"]["of"] + torch.from_numpy(self.array).to(x.dtype)


class InClass(Part):
    calls: ClassVar[int] = 0

    @override
    def move(self, x: Tensor) -> Any:
        type(self).calls += 1
        return type(self).calls


class InHook(Part):
    """Its hook counts, in a variable of the function that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(counting())

    @override
    def move(self, x: Tensor) -> Any:
        return 0.0


def counting() -> Any:
    calls = 0

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output + 1e-4 * calls

    return hook


class ThroughData(Part):
    """Writes past autograd, as codebooks, momentum encoders and clipped weights do."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.linspace(-1, 1, 6), requires_grad=False)
        self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6)
        self.key.requires_grad_(requires_grad=False)
        self.last = torch.zeros(6)
        self.recent: Tensor
        self.register_buffer("recent", torch.zeros(1, 6))

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.code.data.lerp_(x.detach().mean(0), 0.1)
        self.last.data.mul_(0.9).add_(x.detach().mean(0))
        self.recent.data = torch.cat([self.recent, x.detach()[:1]])[-4:]
        for theirs, ours in zip(self.key.parameters(), self.query.parameters(), strict=True):
            theirs.data = 0.9 * theirs.data + 0.1 * ours.data
        y: Tensor = self.query(x) + self.key(x) + self.code + self.last + self.recent.mean(0)
        return y


class Merging(nn.Linear):
    """Adds its low-rank part to its weight for evaluation, as some adapters do."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))
        self.merged = False

    @override
    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.up.data @ self.down.data)
            self.merged = not mode
        return self

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ self.down.T @ self.up.T


class Hidden(Part):
    """Holds modules that it does not register."""

    def __init__(self) -> None:
        super().__init__()
        self.held = [nn.BatchNorm1d(6)]

    @override
    def move(self, x: Tensor) -> Any:
        return self.held[0](x)


class MadeLate(Part):
    """Makes its head and a buffer in the first pass."""

    @override
    def move(self, x: Tensor) -> Any:
        if not hasattr(self, "head"):
            self.head = nn.Linear(x.shape[1], 6)
            self.register_buffer("shift", torch.randn(6))
        return self.get_submodule("head")(x) + self.get_buffer("shift")


KEEPERS: list[Callable[[], nn.Module]] = [
    InObject,
    InAugmentations,
    InContainers,
    InClass,
    InHook,
    ThroughData,
    Merging,
    Hidden,
    MadeLate,
]


@pytest.mark.parametrize("make", KEEPERS)
def test_what_a_module_keeps_is_moved_by_its_own_training_alone(
    make: Callable[[], nn.Module],
) -> None:
    InClass.calls = 0

    def model() -> nn.Module:
        InClass.calls = 0
        return nn.Sequential(make(), host())

    grown, control = isolated(model)
    ours, theirs = grown.model.get_submodule("0"), control.model.get_submodule("0")
    if isinstance(ours, InObject) and isinstance(theirs, InObject):
        assert ours.kept.count == ours.record.count == len(ours.record.seen) == 18  # batches
        assert ours.kept.mean == theirs.kept.mean
    if isinstance(ours, Hidden) and isinstance(theirs, Hidden):
        assert same(ours.held[0].state_dict(), theirs.held[0].state_dict())


# --- what a function keeps ------------------------------------------------------------------------


class Annealed:
    """A loss whose weight moves too little to be seen in its value."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.step += 1
        return loss_fn(model, batch) * (0.5 + 1e-6 * self.step)


def in_closure() -> Any:
    step, log = 0, []
    draws = torch.Generator().manual_seed(0)

    def annealed(model: nn.Module, batch: Any) -> Tensor:
        nonlocal step
        step += 1
        losses = loss_fn(model, batch) * (0.5 + 1e-6 * step)
        log.append(float(losses.detach().mean()))
        return losses * (1 + 0.1 * torch.rand(1, generator=draws)) + 1e-6 * len(log)

    return annealed


_CALLS = 0


def in_a_global(model: nn.Module, batch: Any) -> Tensor:
    global _CALLS  # noqa: PLW0603
    _CALLS += 1
    return loss_fn(model, batch) * (0.5 + 1e-6 * _CALLS)


@pytest.mark.parametrize("make", [Annealed, in_closure, lambda: in_a_global])
def test_what_a_loss_keeps_is_moved_by_the_training_alone(make: Callable[[], Any]) -> None:
    global _CALLS  # noqa: PLW0603
    losses = []
    for grown in (True, False):
        _CALLS = 0
        run = SmallRun(grown=grown, config=NEVER_BLENDS, loss_fn=make()).run(3)
        losses.append(run.losses)
    assert losses[0] == losses[1]


def counter() -> Iterator[int]:
    count = 0
    while True:
        count += 1
        yield count


class Iterating(Part):
    def __init__(self, numbers: Any) -> None:
        super().__init__()
        self.numbers = numbers

    @override
    def move(self, x: Tensor) -> Any:
        return 1e-6 * next(self.numbers)


@pytest.mark.parametrize("make", [counter, itertools.count, lambda: iter(list(range(99)))])
def test_what_cannot_be_put_back_is_named_at_construction(make: Callable[[], Any]) -> None:
    model = nn.Sequential(Iterating(make()), host())
    with pytest.raises(ConfigError, match=r"^'0\.numbers' moves in every pass and cannot be put"):
        SmallRun(model=model, layers=("1.fc1",))


def test_a_head_outside_the_model_is_named_and_left_as_it_was() -> None:
    head = nn.BatchNorm1d(3)

    def through_head(model: nn.Module, batch: Any) -> Tensor:
        return head(model(batch[0])).square().mean(1)  # type: ignore[no-any-return]

    with pytest.raises(ConfigError, match=r"loss_fn uses 'head', which is outside the model"):
        SmallRun(loss_fn=through_head)
    assert same(head.state_dict(), nn.BatchNorm1d(3).state_dict())


# --- holdouts that share what they draw with the training -----------------------------------------


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Examples with noise, drawn by a generator of the data set's own."""

    def __init__(self) -> None:
        self.examples = teacher(96, seed=2)
        self.draws, self.reads = np.random.default_rng(0), 0

    def __len__(self) -> int:
        return 96

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        noise = 0.1 * self.draws.normal() + 1e-3 * self.reads
        return self.examples[0][index] + noise, self.examples[1][index]


class Shuffled(Sampler[int]):
    """Draws from Python's or numpy's generator, and counts its rounds."""

    def __init__(self, draws: Any) -> None:
        self.draws, self.rounds = draws, 0

    @override
    def __iter__(self) -> Iterator[int]:
        self.rounds += 1
        order = list(range(96))
        self.draws.shuffle(order)
        return iter(order[self.rounds % 7 :] + order[: self.rounds % 7])

    def __len__(self) -> int:
        return 96


@pytest.mark.parametrize("draws", [random.Random(3), np.random.default_rng(3)], ids=["py", "np"])
def test_reading_a_holdout_moves_nothing_that_the_training_draws_from(draws: Any) -> None:
    data = Noisy()
    sampler = BatchSampler(Shuffled(draws), 32, drop_last=False)
    loader = DataLoader(data, batch_sampler=sampler)
    before = copy.deepcopy((data.draws, data.reads, vars(sampler.sampler)))
    isolated(host, options=lambda: {"holdout": loader})
    after = (data.draws, data.reads, vars(sampler.sampler))
    assert [x.tolist() for x in _drawn(before)] == [x.tolist() for x in _drawn(after)]
    assert (before[1], before[2]["rounds"]) == (after[1], after[2]["rounds"]) == (0, 0)


def _drawn(state: tuple[Any, int, dict[str, Any]]) -> list[Any]:
    own, sampler = copy.deepcopy(state[0]), copy.deepcopy(state[2]["draws"])
    return [np.asarray(own.random(3)), np.asarray([sampler.random() for _ in range(3)])]
