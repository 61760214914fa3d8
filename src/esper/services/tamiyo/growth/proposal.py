"""Proposal: a graft that is to begin, as rank 0 tells it to the other processes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, final

from esper.contracts.health import GraftRequest
from esper.contracts.seeds import KernelCost
from esper.contracts.selection import Decision, decision_data, decision_from
from esper.contracts.site import Site
from esper.execution.kernel import Kernel, Recipe
from esper.execution.seeded import Seeded


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Answer of policy and selector at the end of an epoch.

    Attributes:
        request: Where the policy asks for a graft; ``None`` if it does not.
        reason: Its reason, or why the request came to nothing.
        chosen: Decisions and their kernels, which are loaded in the process that decided.
        faulty: True if a kernel could not be built.
    """

    request: GraftRequest | None
    reason: str
    chosen: tuple[tuple[Decision, Kernel], ...] = ()
    faulty: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, read back by ``from_json``; weights are not in it."""
        request = None
        if self.request is not None:
            request = asdict(self.request) | {
                "site": str(self.request.site),
                "rivals": list(map(str, self.request.rivals)),
            }
        return {
            "request": request,
            "reason": self.reason,
            "faulty": self.faulty,
            "chosen": [
                {
                    "decision": decision_data(decision),
                    "kernel_id": kernel.kernel_id,
                    "recipe": kernel.recipe.to_json() if kernel.recipe else None,
                    "cost": asdict(kernel.cost) if kernel.cost else None,
                }
                for decision, kernel in self.chosen
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], layers: Mapping[str, Seeded]) -> Self:
        """Undo ``to_json``; kernels are built anew, for these layers."""
        request = data["request"]
        if request is not None:
            rivals = tuple(map(Site.parse, request["rivals"]))
            site = Site.parse(request["site"])
            request = GraftRequest(**(request | {"site": site, "rivals": rivals}))
        chosen = []
        for one in data["chosen"]:
            decision = decision_from(one["decision"])
            alpha = layers[decision.layer_name].seed(decision.seed_idx).alpha
            recipe = Recipe.from_json(one["recipe"])
            module = recipe.build().to(alpha.device, alpha.dtype)
            kernel = Kernel(
                module=module,
                kernel_id=one["kernel_id"],
                recipe=recipe,
                cost=KernelCost(**one["cost"]) if one["cost"] else None,
            )
            chosen.append((decision, kernel))
        return cls(
            request=request, reason=data["reason"], chosen=tuple(chosen), faulty=data["faulty"]
        )
