"""Seeded: a module that holds K seeds, and their life cycle, wherever their kernels act."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from esper.contracts.errors import KernelError, LifecycleError
from esper.contracts.seeds import LayerSpec, SeedState
from esper.contracts.site import Kind
from esper.execution import fast_paths, lifecycle, topology
from esper.execution.concealed import assign_in_place, every_module
from esper.execution.copies.followers import copied, followers
from esper.execution.fast_paths import FusedPath
from esper.execution.kernel import Contribution, Kernel, Recipe, count_parameters
from esper.execution.seed import Seed
from esper.execution.sited import Sited

_NOTHING: tuple[Seed, ...] = ()

Absorbed = tuple[nn.Module, dict[str, Any]]
"""Absorbed kernel, and its id and recipe as JSON data."""


class Seeded(Sited):
    """Module with seeds: beside one layer, or in the width between layers.

    While all seeds are dormant or in isolation, the model computes what its host does, bit for bit.

    Attributes:
        kind: Kind of the site, as in ``Site``.
        name: Dotted name of the site, for messages and records.
        stated_layout: Axes of the input by the user's word, as ``"TBF"``; empty if there is none.
        default_seeds: True if the user chose no blueprints.
        regrown: True if a state dict changed which kernels there are, until ``take_regrown``.
    """

    kind: ClassVar[Kind] = "layer"

    name: str
    seeds: nn.ModuleList
    fossils: nn.ModuleList

    def _plant(
        self, name: str, seeds: Sequence[str], like: Tensor | None, paths: Sequence[FusedPath] = ()
    ) -> None:
        """Set up dormant seeds, one for each blueprint name."""
        self._spec: LayerSpec | None = None
        self.stated_layout = ""
        self.default_seeds = False
        self.seeds = nn.ModuleList(Seed("", blueprint, like) for blueprint in seeds)
        self.rename(name)
        self.fossils = nn.ModuleList()
        self._fossil_records: list[dict[str, Any]] = []
        self.fused_paths = tuple(paths)
        self._blended = self._isolated = _NOTHING
        self._grown = self.regrown = False
        self._silenced = 0
        self._left: list[nn.Parameter] = []

    def rename(self, name: str) -> None:
        """Give the site another dotted name, for messages and records."""
        self.name = name
        for index, seed in enumerate(self._slots()):
            seed.name = f"{index} of layer {name!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copied(self, memo)

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
        """True if any kernel has a part in the output."""
        return self._grown

    @property
    def grown_parameters(self) -> int:
        """Parameters of all kernels: absorbed, blended and isolated."""
        return sum(map(count_parameters, self._kernels()))

    def seed(self, seed_idx: int) -> Seed:
        """Seed with this index.

        Raises:
            LifecycleError: if the layer has no such seed.
        """
        if not 0 <= seed_idx < len(self.seeds):
            raise LifecycleError(
                f"layer {self.name!r} has no seed {seed_idx}; it has 0 to {len(self.seeds) - 1}"
            )
        return self.seeds[seed_idx]  # type: ignore[return-value]

    @property
    def merged_parameters(self) -> int:
        """Parameters of kernels that were merged into the host's."""
        return 0

    def load_kernel(self, seed_idx: int, kernel: Kernel | nn.Module) -> None:
        """Put a kernel into a dormant seed: DORMANT to GERMINATED; the output does not change.

        The kernel takes on the host's device and floating-point type, and the layer's mode.

        Raises:
            LifecycleError: if the seed is not dormant.
            KernelError: if the kernel does not map the layer's input to its output's shape, as far
                as the layer's shapes are known, or is in the layer already.
        """
        seed = self.seed(seed_idx)
        lifecycle.check(seed.name, seed.state, SeedState.GERMINATED)
        if not isinstance(kernel, Kernel):
            kernel = Kernel(
                module=kernel, kernel_id=f"{self.name}:{seed_idx}:{type(kernel).__name__}"
            )
        if any(module is kernel.module for module in every_module(self)):
            raise KernelError(
                f"kernel {kernel.kernel_id!r} is in layer {self.name!r} already; load a copy"
            )
        kernel.module.to(seed.alpha.device, seed.alpha.dtype).train(self.training)
        self.check(kernel)
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
        elif state is SeedState.CULLED:
            seed.drop()
        self._move(seed, state)

    def unload(self, seed_idx: int) -> None:
        """Drop the kernel of an active seed, which becomes CULLED."""
        self.advance(seed_idx, SeedState.CULLED)

    def set_alpha(self, seed_idx: int, alpha: float) -> None:
        """Set the blend weight of a blending seed, in [0, 1].

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

    def contributions(self) -> list[Contribution]:
        """Kernels in the output, in the order in which they are added."""
        absorbed = [
            Contribution(
                k, None, (record["recipe"] or {}).get("blueprint", ""), record["kernel_id"]
            )
            for k, record in zip(self.fossils, self._fossil_records, strict=True)
        ]
        blended = [(seed.as_kernel(), seed.alpha) for seed in self._blended]
        return [
            *absorbed,
            *(Contribution(k.module, a, k.blueprint, k.kernel_id) for k, a in blended),
        ]

    # --- looking at one seed alone ----------------------------------------------------------------

    @contextmanager
    def isolating(self, seed_idx: int) -> Iterator[None]:
        """Shadow pass, under ``torch.no_grad``: this seed at full strength, last of all.

        From the layer on gradients are recorded; everything before it is constant.
        """
        seed = self.seed(seed_idx)
        seed.as_kernel()
        self._blended = tuple(other for other in self._blended if other is not seed)
        self._isolated, self._grown = (seed,), True
        self._act()
        try:
            yield
        finally:
            self._isolated = _NOTHING
            self._refresh()

    def learn_statistics(self) -> None:
        """Let what an isolated kernel knows of its inputs follow the last shadow pass."""

    @contextmanager
    def showing(self, seed_idx: int, *, on: bool) -> Iterator[None]:
        """Counterfactual pass: this seed at full strength or absent, in any state."""
        seed = self.seed(seed_idx)
        seed.as_kernel()
        others = tuple(other for other in self._blended if other is not seed)
        alpha = seed.alpha.clone()
        self._blended = (*others, seed) if on else others
        self._grown = bool(self._blended) or len(self.fossils) > 0
        self._act()
        seed.alpha.fill_(1.0)
        try:
            yield
        finally:
            seed.alpha.copy_(alpha)
            self._refresh()

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Let the model compute what its host does, bit for bit, whatever has grown.

        Until the last of all such blocks ends, whatever kernels do meanwhile; a copy that is made
        in one stays the host alone.
        """
        self._silenced += 1
        self._refresh()
        try:
            yield
        finally:
            self._silenced -= 1
            self._refresh()

    @property
    def is_silenced(self) -> bool:
        """True if the model computes what its host does, whatever has grown."""
        return self._silenced > 0

    @property
    def absorbed(self) -> list[Absorbed]:
        """Absorbed kernels with their ids and recipes, in the order in which they are added."""
        return [
            (kernel, dict(record))
            for kernel, record in zip(self.fossils, self._fossil_records, strict=True)
        ]

    def put_absorbed(self, kernels: Sequence[Absorbed]) -> None:
        """Have these kernels in place of all that are absorbed; they take on device and type.

        Raises:
            KernelError: if one does not map the layer's input to its output's shape.
        """
        like = self._slots()[0].alpha
        for kernel, record in kernels:
            kernel.to(like.device, like.dtype).train(self.training)
            recipe = Recipe.from_json(record["recipe"]) if record["recipe"] else None
            self.check(Kernel(module=kernel, kernel_id=record["kernel_id"], recipe=recipe))
        self.fossils = nn.ModuleList(kernel for kernel, _ in kernels)
        self._fossil_records = [dict(record) for _, record in kernels]
        self._follow_up()
        fast_paths.drop_compiled_graphs()

    # --- checkpoints: the topology travels with the state dict ------------------------------------

    @override
    def get_extra_state(self) -> Tensor:
        """Topology and life cycle, as ``topology.pack`` writes them."""
        return topology.pack(self._slots(), self._fossil_records, self.facts())

    @override
    def set_extra_state(self, state: Tensor) -> None:
        """No-op: ``_load_from_state_dict`` regrows the layer before its children are loaded."""

    def plan(self, packed: Any) -> topology.Plan:
        """Rebuild the topology of a state dict beside the layer; raises as ``topology.plan``."""
        fossils = list(zip(self.fossils, self._fossil_records, strict=True))
        return topology.plan(packed, self.name, self._slots(), fossils, self.facts())

    @override
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if (packed := state_dict.get(f"{prefix}{topology.KEY}")) is not None:
            self._regrow(self.plan(packed))
        else:
            topology.read_plain(state_dict, prefix, self, empty=not self._kernels())
        if args and args[0].get("assign_to_params_buffers"):
            assign_in_place(self.seeds, state_dict, f"{prefix}seeds.")
            assign_in_place(self.fossils, state_dict, f"{prefix}fossils.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def take_regrown(self) -> list[nn.Parameter] | None:
        """Parameters that left the layer when a state dict changed its topology, and forget them.

        ``None`` if no state dict changed it since the last call. ``regrown`` tells without
        forgetting.
        """
        left, self.regrown, self._left = (self._left if self.regrown else None), False, []
        return left

    def _regrow(self, plan: topology.Plan) -> None:
        like = self._slots()[0].alpha
        before, held = self._composition(), self._kernels()
        for seed, (saved, recipe, kernel) in zip(self._slots(), plan.seeds, strict=True):
            if kernel is not None:
                kernel.to(like.device, like.dtype)
            topology.restore(seed, saved, recipe, kernel)
        fossils = [kernel.to(like.device, like.dtype) for kernel in plan.fossils]
        if fossils != list(self.fossils):
            self.fossils = nn.ModuleList(fossils)
        self._fossil_records = plan.records
        self.take_facts(plan.facts)
        self.seeds.train(self.training)
        self.fossils.train(self.training)
        self._refresh()
        if self._composition() != before:
            for copy in followers(self):
                copy.follow(self)
            here = set(map(id, self._kernels()))
            self._left += [p for k in held if id(k) not in here for p in k.parameters()]
            self.regrown = True
            fast_paths.drop_compiled_graphs()

    def follow(self, origin: "Seeded") -> None:
        """Take on the topology of the layer that this one is a copy of; new kernels are copies."""
        own = [(part.kernel_id, part.kernel) for part in self.contributions()]
        fossils = list(zip(origin.fossils, origin._fossil_records, strict=True))
        self._regrow(topology.twin(origin._slots(), fossils, own, origin.facts()))
        for seed, other in zip(self._slots(), origin._slots(), strict=True):
            seed.alpha.copy_(other.alpha)
        self.take_regrown()

    def _composition(self) -> tuple[Any, ...]:
        """Kernels by place, and which of them have a part in the output."""
        slots = [(seed.kernel, seed.state in lifecycle.BLENDED) for seed in self._slots()]
        return (*slots, *self.fossils, self.facts())

    def _kernels(self) -> list[nn.Module]:
        held = (seed.kernel for seed in self._slots())
        return [*self.fossils, *(kernel for kernel in held if kernel is not None)]

    # --- inside -----------------------------------------------------------------------------------

    def _slots(self) -> list[Seed]:
        return list(self.seeds)  # type: ignore[arg-type]

    def _move(self, seed: Seed, state: SeedState) -> None:
        before = (self._blended, len(self.fossils))
        if state is SeedState.FOSSILIZED:
            self._absorb(seed)
        seed.move(state)
        self._follow_up()
        if (self._blended, len(self.fossils)) != before:
            fast_paths.drop_compiled_graphs()

    def _follow_up(self) -> None:
        """Have what depends on the kernels follow a change of them, copies too."""
        self._refresh()
        for copy in followers(self):
            copy.follow(self)

    def _refresh(self) -> None:
        heard = () if self._silenced else self._slots()
        self._blended = tuple(seed for seed in heard if seed.state in lifecycle.BLENDED)
        self._grown = bool(self._blended) or (len(self.fossils) > 0 and not self._silenced)
        for path in self.fused_paths:
            layers = (m for m in path.module.modules() if isinstance(m, Seeded))
            path.allow(not any(layer.is_grown for layer in layers))
        self._act()

    def _act(self) -> None:
        """Take note of which kernels have a part in the output now."""

    def _absorb(self, seed: Seed) -> None:
        assert seed.kernel is not None
        recipe = seed.recipe.to_json() if seed.recipe else None
        self._fossil_records.append({"kernel_id": seed.kernel_id, "recipe": recipe})
        self.fossils.append(seed.kernel)
        seed.drop()
