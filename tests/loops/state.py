"""State: what modules write in their own forward pass; no pass on the side may move it."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from tests.loops.situations import works
from tests.loops.trial import TRAIN, Net, Trial


class Stateful(nn.Module):
    """Counts, remembers and draws by itself in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.draws = torch.Generator().manual_seed(3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 0.01 * self.calls * torch.rand(x.shape, generator=self.draws)


@works
def own_counter_and_generator(trial: Trial) -> None:
    """A module counts its passes and draws noise from a generator of its own."""
    model = Net(Stateful())
    trial.train(model)
    (stateful,) = model.between
    assert isinstance(stateful, Stateful)
    assert stateful.calls == len(trial.epochs) * len(TRAIN)


class Codebook(nn.Module):
    """Vector quantisation whose code is a moving average, written in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.linspace(-1, 1, 40).view(5, 8), requires_grad=False)

    @override
    def forward(self, h: Tensor) -> Tensor:
        nearest = torch.cdist(h, self.code).argmin(1)
        if self.training:
            with torch.no_grad():
                self.code[nearest[0]] = 0.9 * self.code[nearest[0]] + 0.1 * h[0]
        return h + 0.5 * (self.code[nearest] - h).detach()


@works
def codebook(trial: Trial) -> None:
    """A module writes into a parameter in its forward pass, as a codebook."""
    trial.train(Net(Codebook()))


class CodebookByData(Codebook):
    """Writes through ``.data``, which leaves no trace in the tensor's version."""

    @override
    def forward(self, h: Tensor) -> Tensor:
        nearest = torch.cdist(h, self.code).argmin(1)
        if self.training:
            code = self.code.data
            code[nearest[0]] = 0.9 * code[nearest[0]] + 0.1 * h[0].detach()
        return h + 0.5 * (self.code[nearest] - h).detach()


@works
def codebook_by_data(trial: Trial) -> None:
    """A module writes into a parameter through `.data`."""
    trial.train(Net(CodebookByData()))


class Quantiser(nn.Module):
    """Writes into the weight of an embedding inside it, and counts in a buffer."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(5, 8)
        self.register_buffer("counts", torch.zeros(5))

    @override
    def forward(self, h: Tensor) -> Tensor:
        nearest = torch.cdist(h, self.codes.weight).argmin(1)
        if self.training:
            self.counts.data.mul_(0.9).add_(F.one_hot(nearest, 5).sum(0))
            self.codes.weight.data.mul_(0.9).add_(0.1 * h.detach().mean(0))
        y: Tensor = h + 0.5 * (self.codes(nearest) - h).detach()
        return y


@works
def code_of_a_submodule(trial: Trial) -> None:
    """A module writes into the parameter of a module inside it, as a vector quantiser."""
    trial.train(Net(Quantiser()))


class LateWriter(nn.Module):
    """Writes into its parameter from the sixth pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.passes = 0

    @override
    def forward(self, h: Tensor) -> Tensor:
        self.passes += self.training
        if self.training and self.passes > 5:
            with torch.no_grad():
                self.code.lerp_(h.mean(0), 0.1)
        return h + self.code


@works
def late_writer(trial: Trial) -> None:
    """A module begins to write into a frozen parameter after some batches."""
    trial.train(Net(LateWriter()))


class DataInit(nn.Module):
    """Sets its parameters by the first batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.initialised = False

    @override
    def forward(self, h: Tensor) -> Tensor:
        if not self.initialised:
            with torch.no_grad():
                self.scale.copy_(1 / (h.std(0) + 0.1))
            self.initialised = True
        return h * self.scale


@works
def initialised_by_data(trial: Trial) -> None:
    """A module sets its parameters by the first batch of the training, as `ActNorm`."""
    trial.train(Net(DataInit()))


class Queue(nn.Module):
    """Keeps the features of earlier batches in a ring of buffers."""

    kept: Tensor
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(32, 8))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    @override
    def forward(self, h: Tensor) -> Tensor:
        start = int(self.place)
        if self.training:
            self.kept[start : start + len(h)] = h.detach()
            self.place[0] = (start + len(h)) % 32
        return h + 0.1 * self.kept.mean(0)


@works
def queue(trial: Trial) -> None:
    """A module keeps features of earlier batches in a ring, as MoCo's queue."""
    trial.train(Net(Queue()))


class Average(nn.Module):
    """Keeps a moving average in a tensor that is no buffer, written through ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        self.average = torch.zeros(8)

    @override
    def forward(self, h: Tensor) -> Tensor:
        self.average.data.lerp_(h.detach().mean(0), 0.1)
        return h + self.average


@works
def average_in_an_attribute(trial: Trial) -> None:
    """A module keeps a moving average in a tensor that is neither parameter nor buffer."""
    trial.train(Net(Average()))


class Meter:
    """An object with a count and a list."""

    def __init__(self) -> None:
        self.count = 0
        self.values: list[float] = []

    def update(self, value: float) -> None:
        self.count += 1
        self.values.append(value)


class Metered(nn.Module):
    """Keeps its state in objects, containers inside containers, and arrays of NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()
        self.space = SimpleNamespace(step=0)
        self.history: dict[str, dict[str, int]] = {"passes": defaultdict(int)}
        self.counts = np.zeros(2)
        self.draws = np.random.RandomState(3)

    @override
    def forward(self, h: Tensor) -> Tensor:
        self.meter.update(float(h.detach().mean()))
        self.space.step += 1
        self.history["passes"]["all"] += 1
        self.counts[0] += 1
        seen = self.meter.count + len(self.meter.values) + self.space.step
        seen += self.history["passes"]["all"] + int(self.counts[0])
        scale: float = 1 + 0.001 * seen + 0.01 * self.draws.rand()
        return h * scale


@works
def meters_and_containers(trial: Trial) -> None:
    """A module counts in an object, in nested containers, in arrays, and draws by `RandomState`."""
    trial.train(Net(Metered()))
