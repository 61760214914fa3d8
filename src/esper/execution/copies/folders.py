"""Folders of models with kernels, as ``save_pretrained`` of transformers writes them.

``from_pretrained`` of transformers would start the layers with kernels at fresh values, and go on.
It takes the name of the weights from the configuration, if that has one: a sentence in its place
becomes the error with which such a folder is refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

MARK = "transformers_weights"
WRAPPED = "none, its layers have kernels of Esper. Load it by esper.from_pretrained(folder)"
HARDENED = (
    "none, its layers have kernels that no configuration names. Save the wrapped model instead, "
    "and load it by esper.from_pretrained(folder)"
)
_SAVE = "save_pretrained"


def mark_folders(model: nn.Module, has_kernels: Callable[[nn.Module], bool], why: str) -> None:
    """From now on the folders that a model of transformers is saved to say why none loads them."""
    for module in model.modules():
        ours = any(base.__module__.startswith("transformers.") for base in type(module).__mro__)
        if ours and hasattr(type(module), _SAVE) and any(map(has_kernels, module.modules())):
            module.__dict__[_SAVE] = MethodType(_marking(why), module)


def forget_folders(model: nn.Module) -> None:
    """Undo `mark_folders`."""
    for module in model.modules():
        if getattr(module.__dict__.get(_SAVE), "__module__", "") == __name__:
            del module.__dict__[_SAVE]


def _marking(why: str) -> Callable[..., Any]:
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **given: Any) -> Any:
        saved = type(self).save_pretrained(self, save_directory, *args, **given)
        place = Path(save_directory, "config.json")
        if given.get("is_main_process", True) and place.is_file():
            config = json.loads(place.read_text(encoding="utf-8"))
            place.write_text(json.dumps({**config, MARK: why}, indent=2) + "\n", encoding="utf-8")
        return saved

    return save_pretrained
