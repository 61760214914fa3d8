"""Optimizers and schedulers of a run: which of them trains a kernel, and in which group.

A kernel's parameter joins the group that trains the parameter of its kind in the layer's host:
matrices (two axes or more) with matrices, vectors with vectors.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar, final

from torch import nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.execution.kernel import Join
from esper.execution.seeded import Seeded
from esper.execution.training import optimizers
from esper.execution.training.given import refuse_strangers, several, several_schedulers
from esper.execution.training.merging import carried, fit_states, misunderstood
from esper.execution.training.optimizer_trial import objection
from esper.execution.training.places import Place, Places
from esper.execution.training.reloading import kernel_parameters
from esper.execution.training.schedulers import (
    core,
    live_optimizers,
    live_schedulers,
    parts_for,
)
from esper.execution.training.seed_trainer import SeedTrainer
from esper.execution.training.succession import successor

logger = logging.getLogger(__name__)

Named = Sequence[tuple[str, nn.Parameter]]

_Item = TypeVar("_Item")

_CALLS = 5
"""Calls between the user's line that makes a ``Tamiyo`` and the warning of a scheduler."""


@final
class Trainers:
    """The optimizers that train a model, and their schedulers.

    Args:
        model: The wrapped model.
        layers: Its wrapped layers by name.
        optimizer: One, or a list, tuple or dictionary of them; wrapped by other libraries or not.
        scheduler: One, or several; each is matched to the optimizer that it moves.
        seed_optimizer: Makes the optimizer of an isolated seed; by default ones like the host's.

    Raises:
        ConfigError: if there is no optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Seeded],
        optimizer: Any,
        scheduler: Any = None,
        seed_optimizer: optimizers.SeedOptimizer | None = None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.wrappers = several(optimizer)
        self.optimizers: list[Any] = [core(one) for one in self.wrappers]
        self.seed_optimizer = seed_optimizer
        self.schedulers = several_schedulers(scheduler)
        self.places = Places(model, self.optimizers)
        self._unmerged: set[str] = set()
        self._succeeded = False
        self._joined: list[Join] = []

    # --- before the first batch -------------------------------------------------------------------

    def check(self) -> None:
        """Try out every optimizer that would train a kernel, on parameters of no consequence.

        Raises:
            ConfigError: if a layer is trained by an optimizer that was not given, or a kernel's
                parameters, of one axis or of two, cannot be trained.
        """
        refuse_strangers(self.optimizers, self.model)
        for name, layer in self.layers.items():
            self._check_trained(name, layer)
        for one in self.wrappers:
            if optimizers.goes_apart(one):
                for sentence in self._find_schedulers(one):
                    warnings.warn(sentence, stacklevel=_CALLS)
        for name, layer in self.layers.items():
            for ndim in _dims(layer):
                self.places.place(name, layer, ndim)
        # What the user makes seeds' optimizers with does not depend on the layer.
        layers = list(self.layers.values())
        for layer in layers if self.seed_optimizer is None else layers[:1]:
            self._try_seeds(layer)

    def _find_schedulers(self, optimizer: Any) -> list[str]:
        """Take on a scheduler that was not given, for kernels that get groups of their own.

        Returns:
            A sentence about it, if there is one.
        """
        if parts_for(self.schedulers, optimizer):
            return []
        forgotten = live_schedulers(optimizer)
        self.schedulers += forgotten
        if not forgotten:
            return []
        return [
            f"{type(core(optimizer)).__name__} has a scheduler, {type(forgotten[0]).__name__}, "
            "that Tamiyo was not given; it is told of new parameter groups all the same. "
            "Pass Tamiyo(..., scheduler=scheduler), so that a resumed run does too"
        ]

    def _check_trained(self, name: str, layer: Seeded) -> None:
        """Refuse a layer that another optimizer trains; one that none trains is frozen."""
        held = self.places.held()
        wanted = [p for p in layer.host_parameters() if p.requires_grad]
        missing = [p for p in wanted if id(p) not in held]
        if not missing:
            return
        others = live_optimizers(missing)
        if others:
            raise ConfigError(
                f"layer {name!r} is trained by another optimizer, {type(others[0]).__name__}, that "
                "Tamiyo was not given: its kernels would learn at another layer's rate. Pass all "
                "optimizers, Tamiyo(model, [optimizer, other], ...), or freeze the layer with "
                "requires_grad_(False) if that one is done with it"
            )

    def _try_seeds(self, layer: Seeded) -> None:
        """Step the optimizer of a seed once, on parameters of every kind."""
        like = self.places.like(layer)
        dummies = [nn.Parameter(like.new_zeros((2,) * ndim)) for ndim in _dims(layer)]
        try:
            trainer = self.seed_trainer(layer, dummies)
        except ConfigError:
            raise
        except Exception as error:  # the user's function raises what it likes
            raise ConfigError(
                f"seed_optimizer(params) fails: {type(error).__name__}: {error}; it gets a list of "
                "parameters of one axis and of two, and must return an optimizer of them"
            ) from error
        for one in trainer.optimizers:
            held = [p for group in one.param_groups for p in group["params"]]
            why_not = objection(one, held, alone=True)
            if why_not:
                raise ConfigError(
                    f"{type(one).__name__} cannot train an isolated seed: {why_not}. Pass "
                    "seed_optimizer=lambda params: torch.optim.AdamW(params, lr=...), or another "
                    "that steps without a closure"
                )

    # --- whose parameters go where ----------------------------------------------------------------

    def seed_trainer(self, layer: Seeded, parameters: Iterable[nn.Parameter]) -> SeedTrainer:
        """Optimizer of an isolated seed, with the settings of the groups that it will join.

        Raises:
            ConfigError: if none like the user's can be made.
        """
        new = list(parameters)
        if self.seed_optimizer is not None:
            return SeedTrainer([self.seed_optimizer(new)])
        return SeedTrainer(
            [
                optimizers.like(
                    self.optimizers[place.optimizer], part, beside=self.places.anchor(place)
                )
                for place, part in self._split(layer, new, key=lambda p: p)
            ]
        )

    def adopt(self, layer: Seeded, named: Named, *, source: SeedTrainer | None) -> None:
        """Add a kernel's parameters to the optimizers and schedulers of its layer's host.

        Args:
            layer: The layer of the kernel.
            named: Its parameters with the names that they get in the optimizer.
            source: What trained them so far; its state moves too.

        Raises:
            ConfigError: if the host is trained by an optimizer that was not given.
        """
        self._follow()
        self._check_trained(layer.name, layer)  # optimizers may have been made since
        for place, part in self._split(layer, named, key=lambda pair: pair[1]):
            one = self.wrappers[place.optimizer]
            trained_by = None if source is None else source.of(part[0][1])
            if optimizers.goes_apart(one, place.group, trained_by):
                for sentence in self._find_schedulers(one):
                    logger.warning(sentence)
            optimizers.adopt(
                one,
                part,
                source=trained_by,
                scheduler=self.schedulers,
                beside=self.places.anchor(place),
            )

    def _follow(self) -> None:
        """Take on the optimizers that the user's loop made in place of those that were given."""
        for index, optimizer in enumerate(self.optimizers):
            new = successor(optimizer, self._of(optimizer))
            if new is None or any(new is one for one in self.optimizers):
                continue
            logger.log(
                logging.INFO if self._succeeded else logging.WARNING,  # told once
                "%s was not stepped any more, and another optimizer, %s, now trains the same "
                "parameters: kernels join that one. Give it to the next Tamiyo that you make",
                type(optimizer).__name__,
                type(new).__name__,
            )
            self._succeeded = True
            self.optimizers[index] = self.wrappers[index] = new
            self.places.forget()

    def _of(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """Parameters of the host that an optimizer holds, or that none does if these are gone."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parts = [m for la in self.layers.values() for m in (la.seeds, la.fossils)]
        kernels = {id(p) for part in parts for p in part.parameters()}
        host = [p for p in self.model.parameters() if id(p) not in kernels]
        return [p for p in host if id(p) in held] or [p for p in host if not self.holds(p)]

    def holds(self, parameter: nn.Parameter) -> bool:
        """True if one of the optimizers trains a parameter."""
        return id(parameter) in self.places.held()

    def discard(self, parameters: Iterable[nn.Parameter]) -> None:
        """Have every optimizer and scheduler drop these parameters."""
        self._follow()
        gone = list(parameters)
        for optimizer, wrapper in zip(self.optimizers, self.wrappers, strict=True):
            optimizers.discard(optimizer, gone, self.schedulers)
            for parameter in gone:
                wrapper.state.pop(parameter, None)  # SAM keeps one beside its base optimizer's

    def _split(
        self, layer: Seeded, items: Iterable[_Item], *, key: Callable[[_Item], nn.Parameter]
    ) -> Iterator[tuple[Place, list[_Item]]]:
        placed = [(self.places.home(layer, key(item)), item) for item in items]
        for place, part in groupby(sorted(placed, key=lambda pair: pair[0]), lambda pair: pair[0]):
            yield place, [item for _, item in part]

    def merge(self, layer: Seeded) -> None:
        """Make what a site absorbed a part of the host's own parameters, state included.

        A kernel stays as it is where the host is not trained, or its optimizer keeps state that is
        not understood.
        """
        self._follow()
        for kernel in list(layer.fossils):
            joins = layer.joins(kernel)
            trained = [join for join in joins if isinstance(join.host, nn.Parameter)]
            if why := next(filter(None, map(self._objection_to_merge, trained)), ""):
                if layer.name not in self._unmerged:
                    logger.warning(
                        "%s: units that were kept stay parameters of their own, and go on being "
                        "trained: %s",
                        layer.name,
                        why,
                    )
                self._unmerged.add(layer.name)
            elif joins:
                self._merge(layer, kernel, joins)

    def _merge(self, layer: Seeded, kernel: nn.Module, joins: Sequence[Join]) -> None:
        hosts = {id(join.host): join.host for join in joins}
        states = [
            (one, host, carried(one, [join for join in joins if join.host is host]))
            for host in hosts.values()
            for one in self.optimizers
            if host in one.state
        ]
        layer.merge(kernel)
        self._joined += joins
        for one, parameter, state in states:
            one.state[parameter] = state
        self.discard(kernel.parameters())

    def _objection_to_merge(self, join: Join) -> str:
        place = self.places.held().get(id(join.host))
        if place is None or join.host.requires_grad is not join.piece.requires_grad:
            return "a layer beside them is not trained"
        one = self.wrappers[place.optimizer]
        name = type(core(one)).__name__
        if optimizers.spans_parameters(core(one)):
            return f"{name} has state of all parameters together"
        if optimizers.goes_apart(one, place.group):
            return f"{name} keeps parameter groups of their own for them"
        key = misunderstood(one, join.host) or misunderstood(core(one), join.host)
        return f"{name} has state that cannot be widened, {key!r}" if key else ""

    def take_joined(self) -> list[Join]:
        """Pairs of tensors that were merged since the last call, in order."""
        joined, self._joined = self._joined, []
        return joined

    def fit_states(self) -> None:
        """Let the optimizers' state have the shapes of parameters that a state dict changed."""
        for optimizer in self.optimizers:
            fit_states(optimizer)

    # --- checkpoints ------------------------------------------------------------------------------

    def group_names(self) -> Any:
        """Parameter names of every group; of each optimizer where there are several."""
        names = [optimizers.group_names(one, self.model) for one in self.optimizers]
        return names[0] if len(names) == 1 else {"optimizers": names}

    def replay_groups(self, names: Any, gone: Iterable[nn.Parameter] = ()) -> None:
        """Undo ``group_names`` on optimizers over a restored model; ``gone`` are dropped before.

        Raises:
            ConfigError: if the optimizers are not as many as they were, or hold other parameters.
        """
        saved = names["optimizers"] if isinstance(names, Mapping) else [names]
        if len(saved) != len(self.optimizers):
            raise ConfigError(
                f"the checkpoint is of a run with {len(saved)} optimizers, and Tamiyo was given "
                f"{len(self.optimizers)}; give it the same ones, in the same order"
            )
        states = [dict(one.state) for one in self.optimizers]  # theirs may have been loaded before
        groups_now = [group for one in self.optimizers for group in one.param_groups]
        joined = [p for group in groups_now for _, p in optimizers.kernels_in(group)]
        self.discard([*gone, *joined])
        named = {id(p): name for name, p in self.model.named_parameters()}
        grown = {named[id(p)]: name for name, p in kernel_parameters(self.layers.values())}
        for optimizer, groups in zip(self.wrappers, saved, strict=True):
            optimizers.replay_groups(
                optimizer, self.model, groups, self.schedulers, grown=grown, beside=self._beside
            )
        held = self.places.held()
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.state.update({p: s for p, s in state.items() if id(p) in held})

    def _beside(self, parameter: nn.Parameter) -> list[nn.Parameter]:
        """A parameter of the group that a kernel's parameter took its settings from."""
        layer = self._layer_of_kernel(parameter)
        return self.places.anchor(self.places.home(layer, parameter)) if layer else []

    def _layer_of_kernel(self, parameter: nn.Parameter) -> Seeded | None:
        for layer in self.layers.values():
            if any(
                p is parameter for part in (layer.seeds, layer.fossils) for p in part.parameters()
            ):
                return layer
        return None


def _dims(layer: Seeded) -> list[int]:
    """Numbers of axes that parameters of the layer's kernels may have."""
    return sorted({1, 2} | {p.ndim for p in layer.host_parameters() if p.ndim > 2})
