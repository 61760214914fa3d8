"""Watch over which optimizers are stepped: a kernel must not join one that was swapped."""

from collections.abc import Sequence
from contextlib import suppress
from typing import final

from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.training.schedulers import core, live_optimizers


@final
class Stepping:
    """Notes the steps of some optimizers.

    Args:
        optimizers: Outside their wrappers.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self._stepped = False
        for one in optimizers:
            with suppress(AttributeError):  # of a class that never called Optimizer.__init__
                one.register_step_post_hook(lambda *_: self._note())

    def forget(self) -> None:
        """Note steps from now on."""
        self._stepped = False

    def check(self, layer: KasminaLayer) -> None:
        """Refuse to go on where another optimizer trains a layer's host, and none of these does.

        Raises:
            ConfigError: if so.
        """
        if self._stepped or not any(p.requires_grad for p in layer.host.parameters()):
            return
        found = live_optimizers(layer.host.parameters())
        others = [o for o in found if all(core(o) is not one for one in self._optimizers)]
        if others:
            raise ConfigError(
                f"{type(self._optimizers[0]).__name__} is stepped no more, and "
                f"{type(others[0]).__name__} trains layer {layer.name!r}: a kernel would never "
                "learn. After a change of optimizer call tamiyo.finish(), and make a Tamiyo with "
                "the new one"
            )

    def _note(self) -> None:
        self._stepped = True
