"""The event: the one record that every log, store, table and picture is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, as plain JSON data, written once and never changed.

    Attributes:
        op_id: Operation id, chosen by the writer and unique in a store; an event that is appended
            twice under one id counts once.
        kind: What happened: ``"decision"``, ``"outcome"``, ``"lifecycle"``...
        scope: Whose history it belongs to; histories of different scopes do not mix.
        run: The run that wrote it; empty outside a run.
        data: The facts, JSON types only.
    """

    op_id: str
    kind: str
    scope: str = ""
    run: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
