"""Many runs of the effect study's oracle as one batch: every seed of every site auditions.

Hosts, first values of kernels, order of the data, schedule and verdicts are the product's; what
they hear and earn agrees with it to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lab.kernels import Adam, Kernels, built
from esper.contracts.config import Growth
from esper.contracts.seeds import LayerSpec
from esper.services.tamiyo.blueprint_integration import kernel_seed
from esper.studies.trained.setups import Setup
from esper.tasks import TASKS

# R runs, A arms, K kernels, B examples, N examples held out, F features, G features written

Heard = dict[tuple[str, int], tuple[float, float]]
"""Gain of each arm, a layer and a seed, in the shadow; and its standard error."""


class Point(NamedTuple):
    """A graft: what all arms were heard to earn, and what the best of them was worth in the end."""

    heard: Heard
    best: tuple[str, int]
    reward: float
    kept: bool


Arms = Sequence[tuple[Kernels, Adam]]
"""Kernels in the shadow, site by site, and what trains them."""


def table_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """JSON data of a run, as `benchmarks.auditions` replays it."""
    return [
        {
            "heard": [
                [*arm, float(f"{g:.4g}"), float(f"{s:.3g}")] for arm, (g, s) in one.heard.items()
            ],
            "grown": one.best[0] if one.kept else "",
        }
        for one in points
    ]


class _Linear:
    """A linear layer of R hosts."""

    def __init__(self, hosts: Sequence[nn.Module], name: str) -> None:
        found = [host.get_submodule(name) for host in hosts]
        self.weight_R1GF = torch.stack([one.weight.detach() for one in found])[:, None]  # type: ignore[operator]
        self.bias_R11G = torch.stack([one.bias.detach() for one in found])[:, None, None]  # type: ignore[operator]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight_R1GF.mT + self.bias_R11G


class _Site:
    """A wrapped layer of R hosts, and the kernels that it has kept or that are being blended in."""

    def __init__(self, hosts: Sequence[nn.Module], name: str, grafts: int) -> None:
        inner = hosts[0].get_submodule(name)
        parts = list(inner.named_modules())
        self.parts: list[Callable[[Tensor], Tensor]] = [
            _Linear(hosts, f"{name}.{part}".rstrip("."))
            if isinstance(module, nn.Linear)
            else module
            for part, module in parts
            if not list(module.children())
        ]
        maps = [one for one in self.parts if isinstance(one, _Linear)]
        self.spec = LayerSpec(
            kind="features",
            in_size=maps[0].weight_R1GF.shape[-1],
            out_size=maps[-1].weight_R1GF.shape[-2],
        )
        self.host = [t for one in maps for t in (one.weight_R1GF, one.bias_R11G)]
        self.kernels: Kernels | None = None
        self.adam: Adam | None = None
        self.grafts = grafts

    def __call__(self, x: Tensor, alpha_K: Tensor) -> Tensor:
        """Output with the kernels, (R, A, B, G), of inputs (R, A, B, F)."""
        y = x
        for part in self.parts:
            y = part(y)
        if self.kernels is not None and len(alpha_K):
            y = y + self.kernels.together(x, alpha_K)
        return y


class Lab:
    """R runs of the oracle of a task whose host is an MLP, side by side."""

    def __init__(self, setup: Setup, seeds: Sequence[int]) -> None:
        self.setup, self.seeds = setup, list(seeds)
        self.task = TASKS.create(setup.task)
        self.task.batches = setup.batches
        hosts = [self.task.host(seed) for seed in seeds]
        grafts = (setup.epochs - setup.warmup_epochs) // setup.cycle
        self.chain: list[_Site | nn.Module] = [
            _Site(hosts, name, grafts) if name in setup.layers else module
            for name, module in hosts[0].named_children()
        ]
        self.sites = [one for one in self.chain if isinstance(one, _Site)]
        host = [tensor for site in self.sites for tensor in site.host]
        self.host = Adam(host, self.task.weight_decay)
        self.lr = self._rates()
        self.alpha_K = torch.zeros(0)
        self.points: list[list[Point]] = [[] for _ in seeds]
        self._validation = [(x[None, None], y) for x, y in self.task.validation_batches()]

    def run(self) -> list[list[Point]]:
        """Train all runs to their end; the grafts of each."""
        setup, arms = self.setup, None
        since, rate = setup.warmup_epochs - 1, 0.0
        blending: list[tuple[str, int]] = []
        heard: list[Heard] = []
        for epoch in range(setup.epochs):
            begins = epoch == since + 1 and epoch + setup.cycle <= setup.epochs
            if begins:
                rate = self.lr[epoch]
            arms = self._epoch(epoch, arms, rate, begins=begins, ramp=bool(blending))
            if arms is not None and epoch == since + setup.train_epochs:
                heard = self._hear(arms)
                blending = self._blend(arms, heard)
                arms = None
            elif blending and epoch == since + setup.cycle:
                self._judge(blending, heard)
                blending, since = [], epoch
        return self.points

    # --- training ---------------------------------------------------------------------------------

    def _rates(self) -> list[float]:
        optimizer = self.task.optimizer(nn.Linear(1, 1))
        scheduler = self.task.scheduler(optimizer, self.setup.epochs)
        found = []
        for _ in range(self.setup.epochs):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (R, 1, B, F) and targets (R, B) of each step."""
        each = [self.task.train_batches(epoch, seed) for seed in self.seeds]
        for rows in zip(*each, strict=True):
            yield torch.stack([x for x, _ in rows])[:, None], torch.stack([y for _, y in rows])

    def _epoch(
        self, epoch: int, arms: Arms | None, rate: float, *, begins: bool, ramp: bool
    ) -> Arms | None:
        """Train the hosts and what has grown; and the arms, which begin with the first batch."""
        batches = list(self._batches(epoch))
        trained = [*self.host.tensors]
        grown = [site for site in self.sites if site.kernels is not None]
        for site in grown:
            trained += site.kernels.parameters()  # type: ignore[union-attr]
        for number, (x, y) in enumerate(batches):
            if ramp:
                self.alpha_K[-1] = number / len(batches)
            for tensor in trained:
                tensor.requires_grad_(True)
            loss = _losses(self._forward(x), y).mean(dim=-1).sum()
            gradients = torch.autograd.grad(loss, trained)
            for tensor in trained:
                tensor.requires_grad_(False)
            done = len(self.host.tensors)
            self.host.step(self.lr[epoch], gradients[:done])
            for site in grown:
                assert site.adam is not None
                site.adam.step(self.lr[epoch], gradients[done : done + 5], len(self.alpha_K))
                done += 5
            if begins and not number:
                arms = self._begin(len(self.alpha_K), x)
            if arms is not None:
                self._shadow(arms, x, y, rate)
        return arms

    def _forward(self, x: Tensor) -> Tensor:
        for one in self.chain:
            x = one(x, self.alpha_K) if isinstance(one, _Site) else one(x)
        return x

    def _seen(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Input and output of each part of the hosts."""
        seen = []
        with torch.no_grad():
            for one in self.chain:
                y = one(x, self.alpha_K) if isinstance(one, _Site) else one(x)
                seen.append((x, y))
                x = y
        return seen

    def _arms_forward(self, arms: Arms, x: Tensor) -> Iterator[tuple[Tensor, Kernels, Adam]]:
        """Outputs (R, A, B, C) with each arm of each site in turn."""
        seen = self._seen(x)
        places = [at for at, one in enumerate(self.chain) if isinstance(one, _Site)]
        for at, (kernels, adam) in zip(places, arms, strict=True):
            before, after = seen[at]
            z = after + kernels.each(before)
            for one in self.chain[at + 1 :]:
                z = one(z, self.alpha_K) if isinstance(one, _Site) else one(z)
            yield z, kernels, adam

    def _shadow(self, arms: Arms, x: Tensor, y: Tensor, rate: float) -> None:
        for kernels, _ in arms:
            for tensor in kernels.parameters():
                tensor.requires_grad_(True)
        for z, kernels, adam in self._arms_forward(arms, x):
            loss = _losses(z, y).mean(dim=-1).sum()
            gradients = torch.autograd.grad(loss, kernels.parameters())
            for tensor in kernels.parameters():
                tensor.requires_grad_(False)
            adam.step(rate, gradients)

    # --- ends of epochs ---------------------------------------------------------------------------

    def _begin(self, graft: int, x: Tensor) -> Arms:
        """Fresh kernels of every seed of every site; one choice each, in the order of seeds."""
        setup, made = self.setup, []
        places = zip(self.chain, self._seen(x), strict=True)
        read = [before for one, (before, _) in places if isinstance(one, _Site)]
        for name, site, before in zip(setup.layers, self.sites, read, strict=True):
            first = graft * len(setup.seeds)
            numbers = range(first, first + len(setup.seeds))
            seeds = [
                [kernel_seed(run, run, name, number) for number in numbers] for run in self.seeds
            ]
            kernels = built(site.spec, setup.seeds, seeds, setup.kernel_budget, before[:, 0])
            made.append((kernels, Adam(kernels.parameters(), self.task.weight_decay)))
        return made

    def _held_out(self) -> Tensor:
        """Held-out losses as things stand, (R, N)."""
        with torch.no_grad():
            found = [_losses(self._forward(x), y)[:, 0] for x, y in self._validation]
        return torch.cat(found, dim=-1)

    def _hear(self, arms: Arms) -> list[Heard]:
        off_RN, found = self._held_out(), [Heard() for _ in self.seeds]
        with torch.no_grad():
            parts = [
                [_losses(z, y) for z, _, _ in self._arms_forward(arms, x)]
                for x, y in self._validation
            ]
        for name, *losses in zip(self.setup.layers, *parts, strict=True):
            gains_RA, errors_RA = _effect(off_RN[:, None] - torch.cat(losses, dim=-1))
            for run, heard in enumerate(found):
                for seed in range(len(self.setup.seeds)):
                    heard[name, seed] = float(gains_RA[run, seed]), float(errors_RA[run, seed])
        return found

    def _blend(self, arms: Arms, heard: Sequence[Heard]) -> list[tuple[str, int]]:
        """Move the best of each run, with its moments, to the kernels that train with the host."""
        best = [max(one, key=lambda arm: one[arm][0]) for one in heard]
        at = len(self.alpha_K)
        self.alpha_K = torch.cat([self.alpha_K, torch.zeros(1)])
        for name, site, (kernels, adam) in zip(self.setup.layers, self.sites, arms, strict=True):
            if site.kernels is None:
                runs, _, width, _ = kernels.V_RKwF.shape
                sizes = site.spec.in_size, site.spec.out_size
                site.kernels = Kernels.none(runs, site.grafts, width, sizes)
                site.adam = Adam(site.kernels.parameters(), self.task.weight_decay, site.grafts)
            assert site.adam is not None
            site.adam.steps_K[at] = adam.steps_K[0]
            for run, (layer, seed) in enumerate(best):
                if layer != name:
                    continue
                site.kernels.kinds[run, at] = kernels.kinds[run, seed]
                for here, there in zip(site.adam.stacks(), adam.stacks(), strict=True):
                    for mine, its in zip(here, there, strict=True):
                        mine[run, at] = its[run, seed]
        return best

    def _judge(self, best: Sequence[tuple[str, int]], heard: Sequence[Heard]) -> None:
        """Keep what is worth more than two standard errors; the rest is zero from now on."""
        self.alpha_K[-1] = 0.0
        off_RN = self._held_out()
        self.alpha_K[-1] = 1.0
        gains, errors = _effect(off_RN - self._held_out())
        kept = gains > Growth().keep_stderrs * errors
        for run, points in enumerate(self.points):
            points.append(Point(heard[run], best[run], float(gains[run]), bool(kept[run])))
        at = len(self.alpha_K) - 1
        for site in self.sites:
            assert site.adam is not None
            for stacks in site.adam.stacks():
                for tensor in stacks:
                    tensor[~kept, at] = 0.0


def _losses(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, (R, A, B), of outputs (R, A, B, C)."""
    targets = y[:, None] if y.dim() == 2 else y
    return F.cross_entropy(z.movedim(-1, 1), targets.expand(z.shape[:-1]), reduction="none")


def _effect(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over examples, the last axis, and its standard error."""
    exact = gains.double()
    return exact.mean(dim=-1), exact.std(dim=-1) / sqrt(exact.shape[-1])
