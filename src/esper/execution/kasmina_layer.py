"""KasminaLayer: any layer that maps a tensor to a tensor, with K seeds beside it.

The output is ``y = host(x) + sum of absorbed kernels + sum of alpha_i * kernel_i(x)``. A seed that
is dormant or in isolation does not appear in it: the output is the host's, bit for bit.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.contracts.errors import ConfigError, KernelError, LifecycleError
from esper.contracts.seeds import LayerSpec, SeedState
from esper.execution import lifecycle
from esper.execution.kernel import Kernel, Recipe, count_parameters
from esper.execution.quiet import quiet

SCHEMA = 1


@final
class Seed(nn.Module):
    """One slot of a layer: a state, a bound blueprint, and a kernel while there is one.

    Args:
        name: ``"layer:index"``, for messages.
        blueprint: What this slot grows into; empty if that is left open.
        device: Where alpha lives.
    """

    alpha: Tensor

    def __init__(self, name: str, blueprint: str, device: torch.device | None = None) -> None:
        super().__init__()
        self.name = name
        self.blueprint = blueprint
        self.state = SeedState.DORMANT
        self.kernel: nn.Module | None = None
        self.kernel_id: str | None = None
        self.recipe: Recipe | None = None
        # A buffer, so that a ramping alpha neither recompiles a compiled model nor is trained.
        self.register_buffer("alpha", torch.zeros((), device=device))

    def hold(self, kernel: Kernel) -> None:
        """Take a kernel into the slot."""
        self.kernel, self.kernel_id, self.recipe = kernel.module, kernel.kernel_id, kernel.recipe
        self.alpha.zero_()

    def drop(self) -> None:
        """Empty the slot."""
        self.kernel = self.kernel_id = self.recipe = None
        self.alpha.zero_()

    def as_kernel(self) -> Kernel:
        """What the slot holds.

        Raises:
            LifecycleError: if it is empty.
        """
        if self.kernel is None or self.kernel_id is None:
            raise LifecycleError(f"seed {self.name} is {self.state} and has no kernel")
        return Kernel(module=self.kernel, kernel_id=self.kernel_id, recipe=self.recipe)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint must know of the slot beside its tensors."""
        return {
            "state": str(self.state),
            "blueprint": self.blueprint,
            "kernel_id": self.kernel_id,
            "recipe": self.recipe.to_json() if self.recipe else None,
            "loaded": self.kernel is not None,
        }


@final
class KasminaLayer(nn.Module):
    """A host layer, kept as it is, and the seeds that may grow beside it.

    Args:
        host: Any module that maps a tensor to a tensor; further arguments go to it alone.
        name: Dotted name of the layer, for messages and records.
        seeds: One blueprint name for each seed; ``""`` leaves a seed unbound.

    Raises:
        ConfigError: if there is no seed.
    """

    def __init__(self, host: nn.Module, *, name: str, seeds: Sequence[str]) -> None:
        super().__init__()
        if not seeds:
            raise ConfigError(f"layer {name!r} got no seeds; give at least one blueprint name")
        self.name = name
        self.host = host
        self.spec: LayerSpec | None = None
        """What the layer looks like, once a forward pass was observed."""
        first = next((tensor for tensor in host.parameters()), None)
        device = None if first is None else first.device
        self.seeds = nn.ModuleList(
            Seed(f"{name}:{index}", blueprint, device) for index, blueprint in enumerate(seeds)
        )
        self.fossils = nn.ModuleList()
        self._fossil_records: list[dict[str, Any]] = []
        self.mutates_input = any(getattr(part, "inplace", False) for part in host.modules())
        self._blended: tuple[Seed, ...] = ()
        self._isolated: Seed | None = None
        self._grown = False
        self.train(host.training)

    # --- what it computes -------------------------------------------------------------------------

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._grown:
            return self._grown_forward(x, *args, **kwargs)
        return self.host(x, *args, **kwargs)  # type: ignore[no-any-return]

    def _grown_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen = x.clone() if self.mutates_input else x
        y: Tensor = self.host(x, *args, **kwargs)
        for kernel in self.fossils:
            y = y + kernel(seen).to(y.dtype)
        for seed in self._blended:
            y = y + (seed.alpha * seed.kernel(seen)).to(y.dtype)  # type: ignore[misc]
        if self._isolated is not None:
            # The shadow pass comes in without gradients: what lies upstream is a constant. From
            # here on they are recorded, and the caller's context ends it.
            torch.set_grad_enabled(True)
            y = y.detach() + self._isolated.kernel(seen.detach()).to(y.dtype)  # type: ignore[misc]
        return y

    # --- the life of a seed -----------------------------------------------------------------------

    @property
    def available_seeds(self) -> list[int]:
        """Indices of the dormant seeds, ascending."""
        return [i for i, seed in enumerate(self._slots()) if seed.state is SeedState.DORMANT]

    @property
    def seed_states(self) -> tuple[SeedState, ...]:
        """State of every seed, by index."""
        return tuple(seed.state for seed in self._slots())

    @property
    def seed_blueprints(self) -> tuple[str, ...]:
        """Blueprint bound to every seed, by index."""
        return tuple(seed.blueprint for seed in self._slots())

    @property
    def is_grown(self) -> bool:
        """Whether any kernel has a part in the output."""
        return self._grown

    @property
    def grown_parameters(self) -> int:
        """Parameters of all kernels: absorbed, blended and isolated."""
        return count_parameters(self.fossils) + count_parameters(self.seeds)

    def seed(self, seed_idx: int) -> Seed:
        """The slot with this index.

        Raises:
            LifecycleError: if the layer has no such seed.
        """
        if not 0 <= seed_idx < len(self.seeds):
            raise LifecycleError(
                f"layer {self.name!r} has no seed {seed_idx}; it has 0 to {len(self.seeds) - 1}"
            )
        return self.seeds[seed_idx]  # type: ignore[return-value]

    def load_kernel(self, seed_idx: int, kernel: Kernel | nn.Module) -> None:
        """Put a kernel into a dormant seed: DORMANT to GERMINATED; the output does not change.

        The kernel is moved to the host's device and takes on the layer's training mode.

        Raises:
            LifecycleError: if the seed is not dormant.
            KernelError: if the kernel does not map the layer's input to its output's shape, as far
                as the layer's shapes are known.
        """
        seed = self.seed(seed_idx)
        lifecycle.check(seed.name, seed.state, SeedState.GERMINATED)
        if not isinstance(kernel, Kernel):
            kernel = Kernel(module=kernel, kernel_id=f"{seed.name}:{type(kernel).__name__}")
        kernel.module.to(seed.alpha.device).train(self.training)
        self._check_shape(kernel)
        seed.hold(kernel)
        self._move(seed, SeedState.GERMINATED)

    def advance(self, seed_idx: int, state: SeedState) -> None:
        """Take a seed one step on; ``lifecycle.TRANSITIONS`` says which are allowed.

        BLENDING starts at the alpha that is set; HOLDING sets it to 1; FOSSILIZED makes the
        kernel a part of the host side; CULLED drops it; DORMANT ends the cooldown.

        Raises:
            LifecycleError: if the step is not allowed, or wants ``load_kernel``.
        """
        seed = self.seed(seed_idx)
        lifecycle.check(seed.name, seed.state, state)
        if state is SeedState.GERMINATED:
            raise LifecycleError(f"seed {seed.name} germinates by load_kernel(seed_idx, kernel)")
        if state is SeedState.HOLDING:
            seed.alpha.fill_(1.0)
        elif state is SeedState.FOSSILIZED:
            self._absorb(seed)
        elif state is SeedState.CULLED:
            seed.drop()
        self._move(seed, state)

    def unload(self, seed_idx: int) -> None:
        """Drop the kernel of an active seed, which becomes CULLED."""
        self.advance(seed_idx, SeedState.CULLED)

    def set_alpha(self, seed_idx: int, alpha: float) -> None:
        """Set the blend weight of a blending seed.

        Args:
            seed_idx: The seed.
            alpha: In [0, 1].

        Raises:
            LifecycleError: if the seed is not blending, or alpha is out of range.
        """
        seed = self.seed(seed_idx)
        if seed.state is not SeedState.BLENDING:
            raise LifecycleError(
                f"seed {seed.name} is {seed.state}; only a blending seed has alpha"
            )
        if not 0.0 <= alpha <= 1.0:
            raise LifecycleError(f"alpha of seed {seed.name} is {alpha}; it must be in [0, 1]")
        seed.alpha.fill_(alpha)

    def contributions(self) -> list[tuple[nn.Module, Tensor | None]]:
        """Kernels in the output, in order of addition, with their alpha (``None``: absorbed)."""
        blended = [(seed.kernel, seed.alpha) for seed in self._blended if seed.kernel is not None]
        return [*((kernel, None) for kernel in self.fossils), *blended]

    # --- looking at one seed alone ----------------------------------------------------------------

    @contextmanager
    def isolating(self, seed_idx: int) -> Iterator[None]:
        """For a shadow pass: this seed at full strength, everything else in the layer constant."""
        seed = self.seed(seed_idx)
        if seed.kernel is None:
            raise LifecycleError(f"seed {seed.name} is {seed.state} and has no kernel")
        self._isolated, self._grown = seed, True
        try:
            yield
        finally:
            self._isolated = None
            self._refresh()

    @contextmanager
    def showing(self, seed_idx: int, *, on: bool) -> Iterator[None]:
        """For a counterfactual: this seed fully on, or absent, whatever its state."""
        seed = self.seed(seed_idx)
        if seed.kernel is None:
            raise LifecycleError(f"seed {seed.name} is {seed.state} and has no kernel")
        others = tuple(other for other in self._blended if other is not seed)
        alpha = seed.alpha.clone()
        self._blended = (*others, seed) if on else others
        self._grown = bool(self._blended) or len(self.fossils) > 0
        seed.alpha.fill_(1.0)
        try:
            yield
        finally:
            seed.alpha.copy_(alpha)
            self._refresh()

    # --- checkpoints: the topology travels with the state dict ------------------------------------

    @override
    def get_extra_state(self) -> Tensor:
        """Topology and life cycle as JSON in a byte tensor, which any tensor format can carry."""
        state = {
            "schema": SCHEMA,
            "seeds": [seed.to_json() for seed in self._slots()],
            "fossils": self._fossil_records,
        }
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8).clone()

    @override
    def set_extra_state(self, state: Tensor) -> None:
        """Done in ``_load_from_state_dict``, before the children are loaded."""

    @override
    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        packed = state_dict.get(f"{prefix}_extra_state")
        if packed is not None:
            self._regrow(json.loads(bytes(packed.cpu().tolist())))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _regrow(self, state: Mapping[str, Any]) -> None:
        if state["schema"] > SCHEMA:
            raise ConfigError(
                f"layer {self.name!r}: the checkpoint has schema {state['schema']}, this version "
                f"reads up to {SCHEMA}; upgrade esper-morph"
            )
        if len(state["seeds"]) != len(self.seeds):
            raise ConfigError(
                f"layer {self.name!r} has {len(self.seeds)} seeds and the checkpoint has "
                f"{len(state['seeds'])}; wrap the fresh model with as many"
            )
        for seed, saved in zip(self._slots(), state["seeds"], strict=True):
            self._restore(seed, saved)
        self.fossils = nn.ModuleList(
            self._fossil(index, record) for index, record in enumerate(state["fossils"])
        )
        self._fossil_records = list(state["fossils"])
        self._refresh()

    def _fossil(self, index: int, record: Mapping[str, Any]) -> nn.Module:
        if record["recipe"] is not None:
            return self._built(Recipe.from_json(record["recipe"]))
        if index < len(self.fossils):
            return self.fossils[index]
        raise ConfigError(
            f"layer {self.name!r} has absorbed {record['kernel_id']!r}, a module of the user's own "
            "that no recipe can rebuild; load kernels with a recipe if they must survive a "
            "checkpoint, or keep the model with esper.harden"
        )

    def _restore(self, seed: Seed, saved: Mapping[str, Any]) -> None:
        recipe = Recipe.from_json(saved["recipe"]) if saved["recipe"] else None
        if saved["loaded"] and recipe is not None:
            seed.kernel = self._built(recipe)
        elif saved["loaded"] and seed.kernel is None:
            raise ConfigError(
                f"seed {seed.name} held a kernel of the user's own; load_kernel it again before "
                "loading this state dict"
            )
        elif not saved["loaded"]:
            seed.kernel = None
        seed.blueprint, seed.kernel_id = saved["blueprint"], saved["kernel_id"]
        seed.recipe, seed.state = recipe, SeedState(saved["state"])

    def _built(self, recipe: Recipe) -> nn.Module:
        kernel = recipe.build().train(self.training)
        return kernel.to(self._slots()[0].alpha.device, self._slots()[0].alpha.dtype)

    # --- inside -----------------------------------------------------------------------------------

    def _slots(self) -> list[Seed]:
        return list(self.seeds)  # type: ignore[arg-type]

    def _move(self, seed: Seed, state: SeedState) -> None:
        seed.state = state
        self._refresh()

    def _refresh(self) -> None:
        self._blended = tuple(seed for seed in self._slots() if seed.state in lifecycle.BLENDED)
        self._grown = bool(self._blended) or len(self.fossils) > 0

    def _absorb(self, seed: Seed) -> None:
        assert seed.kernel is not None
        recipe = seed.recipe.to_json() if seed.recipe else None
        self._fossil_records.append({"kernel_id": seed.kernel_id, "recipe": recipe})
        self.fossils.append(seed.kernel)
        seed.drop()

    def _check_shape(self, kernel: Kernel) -> None:
        shapes = self._known_shapes()
        if shapes is None:
            return
        (x_shape, y_shape), first = shapes, next(kernel.module.parameters(), None)
        x = torch.zeros(x_shape, device=None if first is None else first.device)
        x = x if first is None else x.to(first.dtype)
        try:
            with torch.no_grad(), quiet(kernel.module):
                found = tuple(kernel.module(x).shape)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise KernelError(
                f"kernel {kernel.kernel_id!r} fails on the input of layer {self.name!r}, shape "
                f"{x_shape}: {error}"
            ) from error
        if found != y_shape:
            raise KernelError(
                f"kernel {kernel.kernel_id!r} maps {x_shape} to {found}, but layer {self.name!r} "
                f"maps it to {y_shape}; the two are added, so they must be equal"
            )

    def _known_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        if isinstance(self.host, nn.Linear):
            return (2, self.host.in_features), (2, self.host.out_features)
        spec = self.spec
        if spec is None:
            return None
        if spec.kind == "features":
            return (2, spec.in_size), (2, spec.out_size)
        if spec.kind == "sequence":
            return (2, 3, spec.in_size), (2, 3, spec.out_size)
        return (2, spec.in_size, *spec.in_extent), (2, spec.out_size, *spec.out_extent)
