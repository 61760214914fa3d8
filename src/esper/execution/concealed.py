"""A part of a module that moves and is saved with it, and that the user's loop does not see.

While a kernel is isolated, ``parameters()``, ``named_parameters()`` and ``modules()`` of the model
leave it out: a weight penalty, clipping by norm, an average of weights or a log of gradient norms
works on the host alone. Devices, types, modes, state dicts and copies do reach it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from typing_extensions import override


class Concealing(nn.Module):
    """Module with one part, ``kernel``, that is concealed or an ordinary submodule."""

    kernel: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self._modules["kernel"] = None

    @property
    def concealed(self) -> nn.Module | None:
        """The part, while it is concealed."""
        return self.__dict__.get("kernel")

    def place(self, part: nn.Module | None, *, concealed: bool) -> None:
        """Make this the part; concealed, or listed among the submodules."""
        # An instance's dictionary is looked up first, and holds no submodule in PyTorch's eyes.
        self.__dict__.pop("kernel", None)
        self._modules["kernel"] = None if concealed else part
        if concealed and part is not None:
            self.__dict__["kernel"] = part

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Concealing":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if recurse and self.concealed is not None:
            self.concealed._apply(fn)  # type: ignore[no-untyped-call]
        return self

    @override
    def train(self, mode: bool = True) -> "Concealing":
        super().train(mode)
        if self.concealed is not None:
            self.concealed.train(mode)
        return self

    @override
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.concealed is not None:
            self.concealed.state_dict(
                destination=destination, prefix=f"{prefix}kernel.", keep_vars=keep_vars
            )

    @override
    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        part, inside = self.concealed, f"{prefix}kernel."
        rest = state_dict
        if part is not None:
            rest = {key: v for key, v in state_dict.items() if not key.startswith(inside)}
            own = {k[len(inside) :]: v for k, v in state_dict.items() if k.startswith(inside)}
            assign = local_metadata.get("assign_to_params_buffers", False)
            if assign:
                assign_in_place(part, own, "")
            try:
                odd = part.load_state_dict(own, strict=False, assign=assign)
            except RuntimeError as error:
                error_msgs.append(f"{inside[:-1]}: {error}")
            else:
                missing_keys += [inside + key for key in odd.missing_keys]
                unexpected_keys += [inside + key for key in odd.unexpected_keys]
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def assign_in_place(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Give parameters the tensors of a state dict that is about to be assigned to their module.

    An optimizer knows a kernel by its parameters, so these stay, and are what is then assigned.
    """
    for name, parameter in module.named_parameters():
        value = state_dict.get(prefix + name)
        if value is not None and not parameter.is_meta and value.shape == parameter.shape:
            parameter.data = value.detach()
            state_dict[prefix + name] = parameter


def every_module(model: nn.Module) -> Iterator[nn.Module]:
    """Modules of a model, what is concealed included."""
    for module in model.modules():
        yield module
        if isinstance(module, Concealing) and module.concealed is not None:
            yield from every_module(module.concealed)


def every_tensor(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a model, what is concealed included, each once."""
    seen: set[int] = set()
    for module in every_module(model):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
