"""Policy: the contract of deciding where and when to grow, and the situation it decides from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from esper.contracts.audition import NO_WORTHS, Worths
from esper.contracts.config import Growth
from esper.contracts.errors import ConfigError, SelectionError
from esper.contracts.health import GraftRequest, HealthSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGrowth:
    """The growth of a layer so far, and the kernels that fit it.

    Attributes:
        kept: Grafts of this layer that were kept, in this run.
        judged: Those that came to a verdict, kept or culled or failed.
        active: Grafts under way.
        smallest_kernel: Parameters of the smallest kernel that fits it; ``None`` if none does.
        roomy_kernel: Parameters with which every blueprint that fits it can build a kernel.
        even_kernel: Parameters of the kernel with which a width keeps step with the others, 0 once
            it has; ``None`` if it need not, as without ``growth.evenly``.
        kinds: Smallest kernel of each of its blueprints that fits and has a free seed; empty if it
            is not known.
        objection: Why it cannot grow now, as ``"was not called yet"``; empty if it may.
    """

    kept: int = 0
    judged: int = 0
    active: int = 0
    smallest_kernel: int | None = None
    roomy_kernel: int = 0
    even_kernel: int | None = None
    kinds: Mapping[str, int] = field(default_factory=dict)
    objection: str = ""

    @property
    def grafts(self) -> int:
        """Grafts of this layer so far, those under way included."""
        return self.judged + self.active


def _no_worths(kernel_budgets: Mapping[str, int]) -> Worths:
    del kernel_budgets
    return NO_WORTHS


Promises = Mapping[str, Mapping[str, Sequence[float]]]
"""By layer and blueprint, what each unit of a kernel's width would gain."""


def _no_promises() -> Promises:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a policy looks at, at the end of one epoch.

    Attributes:
        epoch: From 0.
        losses: Held-out loss at the end of every epoch so far, this one last.
        signals: Health of every layer that may be asked for.
        records: Growth of every layer so far, by name.
        used: Parameters of all kernels, absorbed or under way.
        under_way: Those of them under way.
        last_graft_epoch: Epoch of the latest graft of the run; ``None`` before the first.
        worths: Gives, for kernel budgets of some layers, what each seed there that may be chosen is
            expected to earn; nothing if the strategy does not know.
        worth: Held-out loss that the kernels judged last remove together, and its standard error;
            ``None`` if they were not judged together.
        promises: Gives what kernels would gain, from a pass on recent batches, as
            `esper.execution.passes.probes.promises` measures it.
    """

    epoch: int
    losses: Sequence[float]
    signals: Sequence[HealthSignal]
    records: Mapping[str, LayerGrowth] = field(default_factory=dict)
    used: int = 0
    under_way: int = 0
    last_graft_epoch: int | None = None
    worths: Callable[[Mapping[str, int]], Worths] = _no_worths
    worth: Sequence[float] | None = None
    promises: Callable[[], Promises] = _no_promises


@dataclass(frozen=True)
class Policy(ABC):
    """Decides where and when to grow.

    A new policy is one file with one such frozen dataclass, one line in ``POLICIES``, and passes
    ``esper.testing.policy_laws``. It may be asked several times for one epoch: a layer that refuses
    is left out of the next `Situation`.

    Attributes:
        growth: The settings; ``budget`` is never exceeded.
        seed: Run seed; the only source of randomness, with what the situation says.
    """

    name: ClassVar[str]
    """Its name in ``POLICIES``."""

    when: ClassVar[str] = ""
    """When to use it, in a few words."""

    compares_sites: ClassVar[bool] = False
    """True if seeds of several sites may audition beside each other."""

    growth: Growth = field(default_factory=Growth)
    seed: int = 0

    @property
    def budget(self) -> int:
        """Parameters that growth may add in all; the least, if neither set nor that of a host."""
        return self.growth.budget_for(0)

    def kernel_budget(self, records: Mapping[str, LayerGrowth]) -> int:
        """Parameters that one kernel may cost: as set, or a share of the whole budget.

        A share that would leave some blueprint out is raised until each can build a kernel.
        """
        if self.growth.kernel_budget is not None:
            return self.growth.kernel_budget
        roomy = max((record.roomy_kernel for record in records.values()), default=0)
        share = int(self.growth.kernel_share * self.budget)
        return min(max(share, roomy), self.budget)

    @abstractmethod
    def decide(self, now: Situation) -> tuple[GraftRequest | None, str]:
        """Ask for one graft, or for none.

        Args:
            now: The end of an epoch.

        Returns:
            The request or ``None``, and one sentence that says why.
        """

    @final
    def ask(self, now: Situation) -> tuple[GraftRequest | None, str]:
        """`decide`, held to what was shown, to the budget, and to the end of the run.

        Raises:
            SelectionError: if the policy asks for another layer, or for more than is left.
        """
        request, reason = (None, late) if (late := self._too_late(now)) else self.decide(now)
        left = self.budget - now.used
        if request is not None:
            shown = [signal.layer_name for signal in now.signals]
            if str(request.site) not in shown or not 0 < request.kernel_budget <= left:
                raise SelectionError(
                    f"policy {self.name!r} asked for {request.kernel_budget} parameters in layer "
                    f"{str(request.site)!r}; {left} are left, and it may ask for one of {shown}. "
                    "That is a mistake in the policy"
                )
        return request, reason

    @final
    def over(self, now: Situation) -> str:
        """Reason why no graft can begin from now on; empty if one may.

        Args:
            now: The end of an epoch with no graft under way; losses and signals may be left out.
        """
        return self._too_late(now) or self.used_up(now)

    def used_up(self, now: Situation) -> str:
        """Reason why no kernel fits what is left of the budget; empty if one may, as far as known.

        A policy that would not ask for every kernel that fits says so here.
        """
        sizes = [record.smallest_kernel for record in now.records.values()]
        known = [size for size in sizes if size is not None]
        left = self.budget - now.used
        if not known or len(known) < len(sizes) or left >= min(known):
            return ""
        return (
            f"the budget is used up: {left} of {self.budget} parameters are left, and the smallest "
            f"kernel needs {min(known)}"
        )

    def _too_late(self, now: Situation) -> str:
        """Reason why a graft that began now could not be judged; empty if it could."""
        growth = self.growth
        needed = growth.train_epochs + growth.blend_epochs
        if growth.epochs is None or now.epoch + needed < growth.epochs:
            return ""
        left = max(0, growth.epochs - 1 - now.epoch)
        return f"too late: a graft takes {needed} epochs, and {left} are left"

    def state_dict(self) -> dict[str, Any]:
        """Knowledge that is in no situation, as JSON data; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state_dict`` was asked.

        Raises:
            ConfigError: if ``state`` is not this policy's.
        """
        if state:
            raise ConfigError(
                f"policy {self.name!r} keeps no state, but was given {', '.join(state)}; the state "
                "belongs to another policy"
            )
