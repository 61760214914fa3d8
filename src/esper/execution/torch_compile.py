"""What ``torch.compile`` must be told when a model grows or makes a pass on the side."""

import inspect
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def drop_compiled_graphs() -> None:
    """Drop every compiled graph of the process; each is compiled again when it is next called.

    Dynamo keeps at most ``recompile_limit`` (8) graphs for a function and then runs it eagerly with
    a line in the log only, so the ninth growth would make a compiled model slow for good. There is
    no public way to drop the graphs of one model.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def force_eager() -> AbstractContextManager[object]:
    """Run compiled models eagerly, so that no pass on the side makes the main pass recompile."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    return nullcontext()


def own_recompile_limit(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``torch.compile`` by which a layer shares no recompile limit with its like.

    All wrapped layers run the same code, so that compiled one by one they use up one limit. Older
    versions of PyTorch cannot keep them apart: raise ``torch._dynamo.config.recompile_limit``.
    """
    can = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    return {**({"isolate_recompiles": True} if can else {}), **settings}
