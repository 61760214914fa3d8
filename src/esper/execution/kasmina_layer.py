"""KasminaLayer: any layer that maps a tensor to a tensor, with K seeds beside it.

``y = host(x) + sum of absorbed kernels + sum of alpha_i * kernel_i(x)``. While all seeds are
dormant or in isolation, the output is the host's, bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.contracts.errors import ConfigError, KernelError
from esper.execution import fast_paths
from esper.execution.fast_paths import FusedPath
from esper.execution.forwarding import Forwarding, first_argument
from esper.execution.kernel import Kernel, can_learn, check_kernel
from esper.execution.seeded import Seeded


@final
class KasminaLayer(Seeded, Forwarding):
    """Host layer and the seeds that may grow beside it.

    Attributes that the layer does not have, as ``weight``, are the host's, to read and to write.

    Args:
        host: Any module that maps a tensor, its first argument, to a tensor; further arguments go
            to it alone.
        name: Dotted name of the layer, for messages and records.
        seeds: One blueprint name for each seed; ``""`` leaves a seed unbound.
        like: Tensor whose device and type the kernels take on, for a host without parameters.
        fused_paths: PyTorch's fast paths past the layer, which end when it grows.

    Attributes:
        mutates_input: True if the host writes into its input; told by ``inplace`` of its modules,
            or observed in a forward pass.

    Raises:
        ConfigError: if there is no seed.
    """

    OWN = Forwarding.OWN | {"name", "spec", "stated_layout", "default_seeds", "seeds", "fossils"}
    OWN |= {"mutates_input", "fused_paths", "regrown"}

    def __init__(
        self,
        host: nn.Module,
        *,
        name: str,
        seeds: Sequence[str],
        like: Tensor | None = None,
        fused_paths: Sequence[FusedPath] = (),
    ) -> None:
        Forwarding.__init__(self, host)
        if not seeds:
            raise ConfigError(f"layer {name!r} got no seeds; give at least one blueprint name")
        like = next((p for p in host.parameters() if p.is_floating_point()), like)
        self._plant(name, seeds, like, fused_paths)
        self.mutates_input = any(getattr(part, "inplace", False) for part in host.modules())
        self._reads = first_argument(host)
        # Not train(host.training): parts of the host may be frozen in evaluation mode.
        self.training = host.training
        self.seeds.train(host.training)

    # --- what it computes -------------------------------------------------------------------------

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._grown:
            return self._grown_forward(*args, **kwargs)
        # Looked up where it is: by attribute it would cost a microsecond more, on every call.
        return self._modules["host"](*args, **kwargs)  # type: ignore[misc,no-any-return]

    def _grown_forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.input_of(args, kwargs)
        seen = x.clone() if self.mutates_input else x
        y: Tensor = self.host(*args, **kwargs)
        for kernel in self.fossils:
            y = self._add(y, kernel(seen))
        for seed in self._blended:
            y = self._add(y, seed.alpha * seed.kernel(seen))  # type: ignore[misc]
        for seed in self._isolated:
            # The shadow pass arrives under no_grad: upstream is constant. From here on gradients
            # are recorded; the caller's context ends that.
            torch.set_grad_enabled(True)
            y = self._add(y, seed.kernel(seen))  # type: ignore[misc]
        return y

    def _add(self, y: Tensor, term: Tensor) -> Tensor:
        if term.shape != y.shape:  # it would be broadcast, in silence
            raise KernelError(
                f"a kernel of layer {self.name!r} gives {tuple(term.shape)} where its host gives "
                f"{tuple(y.shape)}; the two are added, so they must be equal"
            )
        return y + term.to(y.dtype)

    @override
    def input_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return args[0] if args else kwargs.get(self._reads)

    @override
    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile as ``nn.Module.compile``, with a recompile limit of the layer's own."""
        super().compile(*args, **fast_paths.own_recompile_limit(kwargs))

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "inplace":  # the host's
            self.mutates_input |= bool(value)

    # --- what the site says of itself -------------------------------------------------------------

    @property
    @override
    def host_type(self) -> str:
        return type(self.host).__name__

    @override
    def host_parameters(self) -> Iterator[nn.Parameter]:
        return self.host.parameters()

    @override
    def check(self, kernel: Kernel) -> None:
        check_kernel(kernel, self.name, self.host, self.spec, like=self._slots()[0].alpha)

    @override
    def can_learn(self, kernel: Kernel) -> bool:
        return can_learn(kernel, self.host, self.spec, like=self._slots()[0].alpha)

    @override
    def facts(self) -> dict[str, Any]:
        return {"mutates_input": self.mutates_input}

    @override
    def take_facts(self, facts: Mapping[str, Any]) -> None:
        self.mutates_input |= bool(facts["mutates_input"])
