"""From a request to a loaded kernel: choose a seed, build its kernel, try it, load it.

Whatever fails on the way, the seed is released, the failure is recorded, and the model is what it
was.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from operator import itemgetter
from time import perf_counter
from types import MappingProxyType
from typing import Any, final

import torch

from esper import blueprints
from esper.contracts.errors import KernelError, NoViableSeedError
from esper.contracts.health import GraftRequest, HealthSignal
from esper.contracts.seeds import KernelCost, LayerSpec, SeedState
from esper.contracts.selection import Decision, SelectionContext
from esper.execution import lifecycle
from esper.execution.kernel import FAULTS, Kernel, Recipe, count_parameters
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import side_effect_free
from esper.services.tamiyo.cohort import may_audition, reserve_cohort
from esper.services.tamiyo.seed_selector import SeedSelector

logger = logging.getLogger(__name__)

_TIMED_PASSES = 5

_NONE: Mapping[str, float] = MappingProxyType({})


@final
class BlueprintIntegration:
    """Loads kernels into the seeds that the selector chooses.

    Args:
        selector: Chooses among the viable seeds of a layer, and reserves.
        seed: Run seed; with layer, seed and number of the graft it settles a kernel's first
            weights.
    """

    def __init__(self, selector: SeedSelector, *, seed: int = 0) -> None:
        self.selector = selector
        self.seed = seed

    async def graft(
        self, layer: Seeded, request: GraftRequest, *, health: HealthSignal | None = None
    ) -> tuple[Decision, Kernel]:
        """As ``graft_now``, without blocking the event loop while the kernel is built."""
        return await asyncio.to_thread(self.graft_now, layer, request, health=health)

    def graft_now(
        self,
        layer: Seeded,
        request: GraftRequest,
        *,
        health: HealthSignal | None = None,
        promises: Mapping[str, float] = _NONE,
    ) -> tuple[Decision, Kernel]:
        """Choose a seed of the layer and load a fresh kernel into it.

        Args:
            layer: The layer to grow; its ``spec`` is known.
            request: When, and how many parameters the kernel may cost.
            health: The layer's latest signal, for strategies that look at it.
            promises: What the gradient promises of its blueprints, relative to all that may grow.

        Returns:
            The decision, which travels on with the graft, and the loaded kernel. The seed is
            GERMINATED and the layer's output is what it was.

        Raises:
            NoViableSeedError: if no seed is free and fits the budget; nothing was touched.
            KernelError: if the chosen kernel cannot be built, run or loaded; the seed is released
                and the failure recorded.
        """
        candidates, context = self.question(layer, request, health, promises)
        decision = self.selector.decide(layer.name, candidates, context)
        return decision, self._loaded(layer, decision, request.kernel_budget)

    def audition_now(
        self,
        layers: Sequence[Seeded],
        request: GraftRequest,
        *,
        health: Mapping[str, HealthSignal],
        promises: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
        scale: Mapping[str, float],
        always: bool = False,
        most: int | None = None,
    ) -> list[tuple[Decision, Kernel]]:
        """Load fresh kernels into the seeds that are to audition, as ``graft_now`` does into one.

        Args:
            layers: The layers whose seeds may take part; their ``spec`` is known.
            request: When, and how many parameters each kernel may cost.
            health: The layers' latest signals, by name.
            promises: What the gradient promises of their blueprints, by name.
            scale: Factor on what the seeds of each layer are expected to earn.
            always: Every seed that is free, however sure the strategy is.
            most: Number of seeds at most; by default all that may be the best.

        Returns:
            Decisions and kernels; none if no audition is worth it, or no kernel could be loaded.
        """
        if not may_audition(self.selector, always=always):
            return []
        by_name, asked = {layer.name: layer for layer in layers}, {}
        for name, layer in by_name.items():
            with suppress(NoViableSeedError):  # `graft_now` says why
                promised = promises.get(name, _NONE)
                asked[name] = self.question(layer, request, health.get(name), promised)
        decisions = reserve_cohort(self.selector, asked, scale, always=always, most=most)
        found = []
        for at, decision in enumerate(decisions):
            layer = by_name[decision.layer_name]
            try:
                kernel = self._loaded(layer, decision, request.kernel_budget)
            except KernelError as error:
                logger.warning("left out of an audition at epoch %d: %s", request.epoch, error)
            except BaseException:
                for later in decisions[at + 1 :]:
                    self.selector.release(later.layer_name, later.seed_idx)
                raise
            else:
                found.append((decision, kernel))
        return found

    def follow_now(self, layer: Seeded, decision: Decision, kernel: Kernel) -> None:
        """Load the kernel of a choice that another process made, as ``graft_now`` did there."""
        self._load(layer, decision.seed_idx, kernel)
        self.selector.follow(decision)

    def question(
        self,
        layer: Seeded,
        request: GraftRequest,
        health: HealthSignal | None,
        promises: Mapping[str, float] = _NONE,
    ) -> tuple[list[int], SelectionContext]:
        """The seeds that may be chosen for a request, and what is known of them."""
        candidates = self.candidates(layer, request.kernel_budget, request.blueprint)
        names = layer.seed_blueprints
        return candidates, SelectionContext(
            current_epoch=request.epoch,
            layer_type=layer.host_type,
            health=health,
            blueprints=dict(enumerate(names)),
            urgency=request.urgency,
            parameters=_sizes(layer, candidates, request.kernel_budget),
            promises={at: promises[names[at]] for at in candidates if names[at] in promises},
        )

    def _loaded(self, layer: Seeded, decision: Decision, budget: int) -> Kernel:
        """The kernel of a reserved seed, built and loaded; raises as ``graft_now``."""
        try:
            kernel = self._build(layer, decision, budget)
            self._load(layer, decision.seed_idx, kernel)
        except KernelError as error:
            # An outcome, so the reservation ends with it; the seed cools down before it is retried.
            self.selector.fail(decision, str(error))
            raise
        except BaseException:  # no fault of the blueprint: the choice is void
            self.selector.release(layer.name, decision.seed_idx)
            raise
        self.selector.commit(layer.name, decision.seed_idx)
        return kernel

    def candidates(self, layer: Seeded, kernel_budget: int, blueprint: str = "") -> list[int]:
        """Seeds that hold no kernel and whose blueprint is wanted, and fits layer and budget.

        A seed that rests after a graft is among them; the selector knows its cooldown.

        Raises:
            NoViableSeedError: if there is none; the message says what stands in the way of each.
        """
        spec = known_spec(layer)
        found, objections = [], []
        for seed_idx, state in enumerate(layer.seed_states):
            objection = _objection(layer.seed_blueprints[seed_idx], spec, kernel_budget)
            if not _is_free(state):
                objection = str(state)
            elif blueprint not in {"", layer.seed_blueprints[seed_idx]}:
                objection = f"not the {blueprint} that was asked for"
            if objection:
                objections.append(f"seed {seed_idx}: {objection}")
            else:
                found.append(seed_idx)
        if not found:
            raise NoViableSeedError(
                f"layer {layer.name!r} has no viable seed at a kernel budget of {kernel_budget} "
                f"parameters ({'; '.join(objections)}); wait for a graft to end or raise the budget"
            )
        return found

    def _build(self, layer: Seeded, decision: Decision, budget: int) -> Kernel:
        run_seed, name, number = decision.random_key
        recipe = Recipe(
            blueprint=layer.seed_blueprints[decision.seed_idx],
            spec=known_spec(layer),
            budget=budget,
            seed=kernel_seed(self.seed, run_seed, name, number),
        )
        alpha = layer.seed(decision.seed_idx).alpha
        kernel_id = f"{layer.name}:{decision.seed_idx}:{recipe.blueprint}:{number}"
        try:
            module = recipe.build().to(alpha.device, alpha.dtype)
            latency_ms = _latency_ms(module, recipe.spec, alpha)
        except FAULTS as error:
            raise KernelError(f"kernel {kernel_id} cannot be built and run: {error}") from error
        cost = KernelCost(parameters=count_parameters(module), latency_ms=latency_ms)
        return Kernel(module=module, kernel_id=kernel_id, recipe=recipe, cost=cost)

    def _load(self, layer: Seeded, seed_idx: int, kernel: Kernel) -> None:
        if layer.seed_states[seed_idx] in lifecycle.RESTING:
            layer.advance(seed_idx, SeedState.DORMANT)
        layer.load_kernel(seed_idx, kernel)


def known_spec(layer: Seeded) -> LayerSpec:
    """The layer's specification.

    Raises:
        KernelError: if no forward pass was observed yet.
    """
    if layer.spec is None:
        raise KernelError(
            f"the shapes of layer {layer.name!r} are not known; run observe_shapes on a batch first"
        )
    return layer.spec


def smallest_kernels(layer: Seeded) -> dict[str, int]:
    """Parameters of the smallest kernel of each of its blueprints that fits the layer, ascending.

    Raises:
        KernelError: if no forward pass was observed yet.
    """
    spec = known_spec(layer)
    found = {name: _smallest(name, spec) for name in dict.fromkeys(layer.seed_blueprints)}
    sizes = {name: size for name, (size, objection) in found.items() if not objection}
    return dict(sorted(sizes.items(), key=itemgetter(1)))


def free_blueprints(layer: Seeded) -> set[str]:
    """Blueprints of the seeds that hold no kernel."""
    pairs = zip(layer.seed_blueprints, layer.seed_states, strict=True)
    return {blueprint for blueprint, state in pairs if _is_free(state)}


def _is_free(state: SeedState) -> bool:
    return state is SeedState.DORMANT or state in lifecycle.RESTING


def misfit(layer: Seeded) -> str:
    """Reason why the blueprint of the layer's first seed does not fit it; empty if it does."""
    objection = _smallest(layer.seed_blueprints[0], known_spec(layer))[1]
    return objection.partition(". Blueprints that fit")[0]


def _sizes(layer: Seeded, seeds: list[int], budget: int) -> dict[int, int]:
    """Parameters of the kernel that each seed would get; a seed without one is left out."""
    spec, names = known_spec(layer), layer.seed_blueprints
    sizes: dict[str, int] = {}
    for name in {names[seed_idx] for seed_idx in seeds}:
        with suppress(*FAULTS):  # of a blueprint: shows, and is recorded, when it is built
            sizes[name] = blueprints.size_within(name, spec, budget=budget)
    return {seed_idx: sizes[names[seed_idx]] for seed_idx in seeds if names[seed_idx] in sizes}


def _objection(blueprint: str, spec: LayerSpec, budget: int) -> str:
    needed, objection = _smallest(blueprint, spec)
    if objection:
        return objection
    return f"{blueprint} needs {needed} parameters" if needed > budget else ""


def _smallest(blueprint: str, spec: LayerSpec) -> tuple[int, str]:
    """Parameters of its smallest kernel, or why it has none for this layer."""
    if not blueprint:
        return 0, "no blueprint is bound to it"
    try:
        return blueprints.smallest(blueprint, spec), ""
    except FAULTS as error:
        return 0, str(error)


def kernel_seed(*key: Any) -> int:
    """Seed of a kernel's first values: of integration, selector, layer, and choice in the layer."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=6).digest(), "big")


def _latency_ms(module: torch.nn.Module, spec: LayerSpec, like: torch.Tensor) -> float | None:
    """Median time of a few forward passes on a batch of 32; ``None`` for units, which have none."""
    if spec.pieces:
        return None
    x = torch.zeros(spec.input_shape(32, 16), device=like.device, dtype=like.dtype)
    times = []
    with side_effect_free(module), torch.no_grad():
        for _ in range(_TIMED_PASSES):
            started = perf_counter()
            module(x)
            times.append(perf_counter() - started)
    return sorted(times)[_TIMED_PASSES // 2] * 1000
