"""Adapters without Esper: merged into the host's weights, or as a folder that peft reads."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from esper.adapters.switching import current
from esper.blueprints.scale import BiasKernel, ScaleKernel
from esper.contracts.errors import ConfigError
from esper.execution.concealed import every_module
from esper.execution.copies.models import copy_model
from esper.execution.harden import harden
from esper.execution.seeded import Absorbed
from esper.execution.surgery import kasmina_layers

# F features read, G features written, r rank

M = TypeVar("M", bound=nn.Module)


def merge(model: M) -> M:
    """Copy an adapted model into a plain one, kernels merged into weights where that is exact.

    Low-rank kernels, and scales and offsets beside a bias, become a part of their linear layer's
    weight and bias, so the model has its own classes, names and sizes; outputs are equal up to
    rounding. What is left becomes a plain module beside its layer, as `esper.harden` makes it: a
    nonlinear kernel; and any kernel of a layer that has forward hooks or a ``forward`` of its own,
    whose weight is computed from others, as by ``weight_norm`` or ``prune``, or which shares its
    weight, as a head tied to an embedding. A model that reads a weight itself, as
    ``self.fc.weight``, reads the merged one.

    Raises:
        LifecycleError: if a kernel is being blended in; ``tamiyo.finish()`` ends the adaptation.
        ConfigError, KernelError: as `esper.harden`.
    """
    current(model)
    plain = copy_model(model)
    uses = Counter(id(p) for module in every_module(plain) for p in module._parameters.values())
    for layer in kasmina_layers(plain).values():
        host = layer.host
        if _is_plain(host) and all(uses[id(p)] == 1 for p in host.parameters()):
            layer.put_absorbed([one for one in layer.absorbed if not _merged(host, *one)])
    return harden(plain)


def _is_plain(host: nn.Module) -> TypeGuard[nn.Linear]:
    """True for a linear layer of PyTorch's whose output is that of its own weight and bias."""
    return (
        type(host) is nn.Linear
        and "forward" not in vars(host)
        and not (host._forward_hooks or host._forward_pre_hooks)
        and host._parameters.keys() == {"weight", "bias"}  # others are recomputed by a hook
        and type(host.weight) is nn.Parameter
    )


def _merged(host: nn.Linear, kernel: nn.Module, record: Mapping[str, Any]) -> bool:
    """Add a kernel to the weight and bias of its host; ``False`` if that would not be exact."""
    factors = _factors(kernel, record)
    with torch.no_grad():
        if factors is not None:
            up_Gr, down_rF = factors
            host.weight.add_((up_Gr.double() @ down_rF.double()).to(host.weight.dtype))
            return True
        if isinstance(kernel, ScaleKernel | BiasKernel) and host.bias is not None:
            if isinstance(kernel, ScaleKernel):
                host.weight.add_(torch.diag(kernel.scale))
            host.bias.add_(kernel.shift)
            return True
    return False


def _blueprint(record: Mapping[str, Any]) -> str:
    return str((record["recipe"] or {}).get("blueprint", ""))


def _factors(kernel: nn.Module, record: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """``U_Gr`` and ``V_rF`` of a kernel that adds ``U V x``; ``None`` of others."""
    if _blueprint(record) not in {"lora", "lowrank"} or not hasattr(kernel, "up"):
        return None
    up, down = kernel.get_parameter("up.weight"), kernel.get_parameter("down.weight")
    return up.detach() * float(getattr(kernel, "scale", 1.0)), down.detach()


def export_lora(model: nn.Module, folder: str | Path) -> Path:
    """Write the adapter that is on as a LoRA folder, for ``peft.PeftModel.from_pretrained``.

    Each layer has a rank of its own (``rank_pattern``), and the head is a module to save.

    Raises:
        ConfigError: if a kernel is not of low rank, or there is none.
        LifecycleError: as `esper.save_adapter`.
    """
    adapter, place = current(model), Path(folder)
    if not adapter.kernels:
        raise ConfigError("the model has no kernels to export; adapt it first by esper.adapt")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, held in adapter.kernels.items():
        up_Gr, down_rF = _joined(name, held)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down_rF.contiguous().cpu()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up_Gr.contiguous().cpu()
        ranks[name] = len(down_rF)
    for name, value in adapter.head.items():
        tensors[f"base_model.model.{name}"] = value.contiguous().cpu()
    largest = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": list(ranks),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.head}) or None,
    }
    place.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    (place / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return place


def _joined(name: str, held: Sequence[Absorbed]) -> tuple[Tensor, Tensor]:
    """Factors of all kernels of a layer as those of one."""
    ups, downs = [], []
    for kernel, record in held:
        factors = _factors(kernel, record)
        if factors is None:
            raise ConfigError(
                f"layer {name!r} has a kernel of blueprint {_blueprint(record) or 'none'!r}, and "
                "LoRA is of low rank; save it by esper.save_adapter, or merge the model"
            )
        ups.append(factors[0])
        downs.append(factors[1])
    return torch.cat(ups, dim=1), torch.cat(downs)
