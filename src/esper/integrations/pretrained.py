"""Models of transformers, loaded from where ``save_pretrained`` or a Trainer put them.

``Model.from_pretrained`` knows nothing of wrapped layers: it refuses a folder that has some.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.contracts.errors import ConfigError
from esper.execution import topology
from esper.execution.copies.folders import MARK, WRAPPED
from esper.execution.surgery import seeded_modules
from esper.integrations.requirements import require
from esper.widths.kasmina_width import CHILD
from esper.widths.wrap import wrap as wrap_layers

require("transformers", "5.0", extra="transformers")

import transformers  # noqa: E402 (checked above)
from huggingface_hub.errors import StrictDataclassError  # noqa: E402 (comes with it)

_CONFIG, _FILE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def from_pretrained(
    folder: str | Path, kind: Any = None, *, wrap: Callable[[nn.Module], nn.Module] | None = None
) -> Any:
    """Load a model of transformers with the kernels that it has, if it has any.

    Nothing is downloaded, and no code in the folder is run.

    Args:
        folder: Where it was saved, also a checkpoint of a Trainer.
        kind: Class of the model, or an auto class, as ``AutoModelForSequenceClassification``; by
            default the class that the folder tells.
        wrap: Wraps a fresh model as the saved one was. By default the layers that the saved one
            tells are wrapped; one with widths that grow needs it.

    Returns:
        The model, wrapped as it was saved or plain, in evaluation mode as ``from_pretrained``
        leaves it; ``esper.merge`` makes it plain.

    Raises:
        ConfigError: if files are missing or damaged, the class is not known, or the layers are not
            those that ``wrap`` wraps.
        KernelError: if a blueprint no longer builds what it built.
    """
    place = Path(folder)
    facts = _facts(place)
    if kind is None:
        kind = _kind(place, facts)
    mark = facts.get(MARK)
    if mark not in {None, WRAPPED}:
        raise ConfigError(f"{folder} cannot be loaded: its weights are {mark}")
    state = _read(place)
    ends = f".{topology.KEY}"
    sites = [key.removesuffix(ends) for key in state if key.endswith(ends)]
    if not sites:
        return kind.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
    model = _fresh(kind, place)
    if wrap is not None:
        model = wrap(model)
    else:
        _wrap(model, state, sites, folder)
    unlike = sorted(set(sites) ^ set(seeded_modules(model)))
    if unlike:
        raise ConfigError(
            f"{folder} and the fresh model differ in whether {unlike[0]!r} has seeds; let wrap "
            "wrap it as the saved one was"
        )
    try:
        found = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        why = str(error).partition("\n\t")[2].partition("\n")[0] or str(error)
        raise ConfigError(f"{folder}: {_FILE} and {_CONFIG} are of two models: {why}") from error
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = [key for key in found.missing_keys if key not in tied]
    if missing or found.unexpected_keys:
        odd = (missing + list(found.unexpected_keys))[0]
        raise ConfigError(f"{folder} does not hold a model like this one: {odd!r} is in one only")
    if tied:
        model.tie_weights()
    return model.eval()


def _facts(place: Path) -> dict[str, Any]:
    """Configuration of a saved model, as it is written.

    Raises:
        ConfigError: if there is none, or it is damaged.
    """
    if not (place / _CONFIG).is_file():
        way_out = (
            "it holds an adapter alone; put it on its host by esper.load_adapter(model, folder)"
            if (place / "adapter.json").is_file()
            else "give the folder that model.save_pretrained wrote"
        )
        raise ConfigError(f"{place} has no {_CONFIG}; {way_out}")
    try:
        return dict(json.loads((place / _CONFIG).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{place}: {_CONFIG} is damaged: {error}; save the model again"
        ) from error


def _kind(place: Path, facts: dict[str, Any]) -> Any:
    told = facts.get("architectures")
    name = str(told[0]) if isinstance(told, list) and told else "no class"
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and hasattr(kind, "from_pretrained")):
        raise ConfigError(
            f"{place} is of {name}, and transformers {transformers.__version__} has no such model; "
            "give its class, as esper.from_pretrained(folder, BertModel)"
        )
    return kind


def _fresh(kind: Any, place: Path) -> Any:
    """A model as the configuration says, its values random, and no random state changed."""
    configs = getattr(kind, "config_class", None) or transformers.AutoConfig  # of auto classes
    try:
        config = configs.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        config.__dict__.pop(MARK, None)
        with torch.random.fork_rng(devices=[]):
            return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{place}: {_CONFIG} is damaged: {why}; save the model again") from error


def _read(place: Path) -> dict[str, Tensor]:
    try:
        files = [_FILE]  # comes first, as for transformers: the index may be of an earlier save
        if not (place / _FILE).is_file() and (place / _INDEX).is_file():
            index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
        missing = next((file for file in files if not (place / file).is_file()), "")
        if missing:
            raise ConfigError(f"{place} has no {missing}; give a folder that save_pretrained wrote")
        return {k: v for file in files for k, v in load_file(place / file).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{place}: its weights are damaged: {error}; save it again") from error


def _wrap(model: nn.Module, state: dict[str, Tensor], sites: list[str], folder: Any) -> None:
    seeds: dict[str, list[str]] = {}
    for site in sites:
        if CHILD in site.split("."):
            raise ConfigError(
                f"{folder} holds a model whose widths grow; give from_pretrained(..., wrap=lambda "
                "model: esper.wrap(model, widen=..., example=batch, loss_fn=loss_fn))"
            )
        # Of a layer inside another wrapped one, "host" is a step of the wrapper's.
        name = ".".join(part for part in site.split(".") if part != "host")
        seeds[name] = topology.blueprints(state[f"{site}.{topology.KEY}"], name)
    wrap_layers(model, list(seeds), seeds)
