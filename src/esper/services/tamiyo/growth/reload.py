"""Kernels that a run did not begin itself: of state dicts, and of a Tamiyo that is gone.

``load_state_dict`` into a model of equal topology copies values and changes nothing here. Where
kernels came or went, as when the best epoch is restored, the optimizer lets go of those that are no
longer the model's and takes on those that now have a part in its output; a graft whose kernel is
gone ends as failed by the loop.

A kernel under way that no graft has when the first batch comes, and with it the last chance to load
a state, was left by a run that never called ``finish()``.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, final
from weakref import WeakMethod

from torch import nn

from esper.contracts.errors import ConfigError
from esper.execution import lifecycle
from esper.execution.seeded import Seeded
from esper.execution.training.reloading import keep_linked
from esper.services.tamiyo.growth.governor import Governor
from esper.services.tamiyo.growth.grafts import ActiveGrafts

logger = logging.getLogger(__name__)

_UNDER_WAY = lifecycle.ISOLATED | lifecycle.BLENDED
_WHY = "a state dict without its kernel was loaded into the model"


@final
class Reloads:
    """Notices kernels that came or went outside the run, and links what depends on them."""

    def __init__(self, grafts: ActiveGrafts, governor: Governor) -> None:
        self.grafts = grafts
        self.governor = governor
        self.epoch = 0
        """Number of the present epoch."""
        self.begun = False
        """True from the first batch on; before it, states may be loaded one after the other."""
        self._handles = [
            handle
            for optimizer in grafts.training.trainers.optimizers
            for handle in keep_linked(optimizer, WeakMethod(self.link))
        ]

    def end(self) -> None:
        """Link nothing any more."""
        for handle in self._handles:
            handle.remove()

    def start_over(self, state: Mapping[str, Any]) -> list[nn.Parameter]:
        """Parameters of every kernel, that went too: ``state``, of Tamiyo, follows and has them.

        Raises:
            ConfigError: if the model has not the kernels that the state is of.
        """
        missing = self._missing(state["grafts"]) or self._untrained(state["groups"])
        if missing:
            raise ConfigError(
                f"the state is of a model with {missing}, which this one does not have; load the "
                "model's state dict before Tamiyo's, both of the same moment"
            )
        layers = self.grafts.layers.values()
        gone = [p for layer in layers for p in layer.take_regrown() or ()]
        parts = [module for layer in layers for module in (layer.seeds, layer.fossils)]
        held = [p for part in parts for p in part.parameters()]
        isolated = [p for layer in layers for p in _isolated(layer)]
        return [*gone, *held, *isolated]

    def _missing(self, state: Mapping[str, Any]) -> str:
        """A kernel that a state has a graft of and the model does not; empty if there is none."""
        for saved in state["grafts"]:
            name, seed_idx = (saved["decision"][key] for key in ("layer", "seed"))
            if self.grafts.layers[name].seed(seed_idx).kernel is None:
                return f"a kernel in seed {seed_idx} of layer {name!r}"
        return ""

    def _untrained(self, groups: Any) -> str:
        """A parameter that the model does not have and a state's optimizers do, if there is one."""
        every = groups["optimizers"] if isinstance(groups, Mapping) else [groups]
        there = dict(self.grafts.training.model.named_parameters())
        names = (name for groups in every for group in groups for name in group)
        return next((f"a parameter {name!r}" for name in names if name not in {"", *there}), "")

    def link(self, *, begun: bool = False) -> None:
        """Link optimizer and grafts to the kernels that there are, if they changed.

        Args:
            begun: True if the run has begun; until then its states may be loaded in any order.
        """
        first, self.begun = begun and not self.begun, self.begun or begun
        with self.grafts.aside("the link to a loaded state dict"):
            layers = [
                layer
                for layer in self.grafts.layers.values()
                if layer.regrown or (first and self._left_behind(layer))
            ]
            if layers and self.begun:
                self._link(layers, tell=first)
            for layer in layers:
                self._adopt(layer)

    def _link(self, layers: Sequence[Seeded], *, tell: bool) -> None:
        self.governor.let_go()  # what it keeps is of other kernels
        gone = [p for layer in layers for p in layer.take_regrown() or ()]
        isolated = [p for layer in layers for p in _isolated(layer)]
        self.grafts.training.trainers.discard([*gone, *isolated])
        self.grafts.training.trainers.fit_states()
        self.grafts.end_lost(_WHY, epoch=self.epoch)
        for layer in layers:
            self._settle(layer, tell=tell)

    def _left_behind(self, layer: Seeded) -> list[int]:
        """Seeds with a kernel under way that no graft of this run sees through."""
        known = {(g.layer.name, g.decision.seed_idx) for g in self.grafts.grafts}
        return [
            seed_idx
            for seed_idx, state in enumerate(layer.seed_states)
            if state in _UNDER_WAY and (layer.name, seed_idx) not in known
        ]

    def _settle(self, layer: Seeded, *, tell: bool) -> None:
        """Drop isolated kernels that no graft trains, and say which blended ones nobody judges.

        With ``tell`` the dropped ones are named too: nobody asked for that by loading a state.
        """
        for seed_idx in self._left_behind(layer):
            alpha, end = float(layer.seed(seed_idx).alpha), "it is dropped"
            if layer.seed_states[seed_idx] in lifecycle.ISOLATED:
                layer.unload(seed_idx)
            else:
                tell, end = (
                    True,
                    (
                        f"it stays at alpha {alpha:.2f} and trains with the model. "
                        f"layer.unload({seed_idx}) drops it"
                    ),
                )
            if tell:
                logger.warning(
                    "layer %s: the kernel of seed %d is of a graft that has ended, or of a Tamiyo "
                    "that is gone without finish() and whose state was not loaded; %s",
                    layer.name,
                    seed_idx,
                    end,
                )

    def _adopt(self, layer: Seeded) -> None:
        """Let the optimizer train every kernel in the output that it does not hold."""
        trainers = self.grafts.training.trainers
        for part in layer.contributions():
            named = part.kernel.named_parameters(prefix=part.kernel_id)
            new = [(n, p) for n, p in named if p.requires_grad and not trainers.holds(p)]
            if new:
                trainers.adopt(layer, new, source=None)


def _isolated(layer: Seeded) -> list[nn.Parameter]:
    return [
        parameter
        for seed_idx, state in enumerate(layer.seed_states)
        if state in lifecycle.ISOLATED
        for parameter in layer.seed(seed_idx).as_kernel().module.parameters()
    ]
