"""Sited: what a site says of itself, wherever its kernels act; the engine asks nothing else."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from esper.contracts.seeds import LayerSpec
from esper.execution import topology
from esper.execution.kernel import Join, Kernel


class Sited(nn.Module):
    """Module of a site: beside a layer, or in the width between layers.

    What is not abstract is what holds beside a layer.
    """

    _spec: LayerSpec | None

    @property
    def spec(self) -> LayerSpec | None:
        """Kind and shapes that blueprints build for, once they are known."""
        return self._spec

    @spec.setter
    def spec(self, spec: LayerSpec | None) -> None:
        self._spec = spec

    @property
    @abstractmethod
    def host_type(self) -> str:
        """Class name of the host's module here."""

    @abstractmethod
    def host_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the host here, whose optimizer trains the kernels."""

    @property
    def frozen(self) -> bool:
        """True if the host has parameters here, and none of them is trained."""
        trained = [parameter.requires_grad for parameter in self.host_parameters()]
        return bool(trained) and not any(trained)

    @abstractmethod
    def check(self, kernel: Kernel) -> None:
        """Run a kernel's trial.

        Raises:
            KernelError: if it does not fit.
        """

    @abstractmethod
    def can_learn(self, kernel: Kernel) -> bool:
        """True if a kernel runs alone, forward and backward, as far as can be told."""

    @abstractmethod
    def input_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Tensor that is read here, among the arguments of a call; ``None`` if there is none."""

    def plain_name(self, path: str) -> str:
        """Name of the site in events, by the path of its module in the plain model."""
        return path

    def ends_in(self, module: nn.Module) -> bool:
        """True if the site is partly inside a module, so that a kernel beside it would not fit."""
        del module
        return False

    def misfit(self, model: nn.Module) -> str:
        """Sentence that says why the site cannot grow, as the user changed the model; or empty."""
        del model
        return ""

    def beside(self, parameter: nn.Parameter) -> nn.Parameter | None:
        """Parameter of the host whose group a kernel's joins; ``None``: any of its kind."""
        del parameter
        return None

    def joins(self, kernel: nn.Module) -> list[Join]:
        """Pairs of a tensor of the host and a kernel's, in order; none if they cannot be merged."""
        del kernel
        return []

    def merge(self, kernel: nn.Module) -> None:
        """Make an absorbed kernel a part of the host's own modules, where ``joins`` has any."""

    def make_room(self, plan: topology.Plan) -> None:
        """Get ready for a state dict of this topology, before the host's parameters are loaded."""

    def discard(self) -> None:
        """Drop what has grown, and leave the host's modules as they were."""

    def settle(self) -> None:
        """Make what has a part in the output a part of the host's modules, for good."""

    def forget_shapes(self) -> None:
        """Forget the specification, which another pass will tell."""
        self.spec = None

    def facts(self) -> dict[str, Any]:
        """JSON data of the site in a state dict, beside seeds and fossils."""
        return {}

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """Undo ``facts``."""
