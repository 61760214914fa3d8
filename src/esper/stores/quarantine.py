"""Quarantine: entries of a store that are no events, passed over by every read and told once."""

import logging
from collections.abc import Mapping
from typing import Any, final

from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.stores.payload import decode

logger = logging.getLogger(__name__)

_MOST = 10_000
_FIELDS = (b"op_id", b"kind", b"scope", b"run")


@final
class Quarantine(dict[str, str]):
    """Position to reason; the first one is logged as a warning.

    Args:
        address: The store, for the message.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    def event(self, position: str, names: tuple[Any, ...], text: Any, schema: Any) -> Event | None:
        """Event from what a store holds; ``None`` if it is none, which is noted.

        Args:
            position: Where it stands.
            names: ``op_id``, ``kind``, ``scope``, ``run``, ``writer`` and ``number``.
            text: Its data as JSON.
            schema: Its schema.
        """
        *strings, number = names
        try:
            for name in strings:
                if not isinstance(name, str):
                    raise StoreError(f"a name of it is {name!r}, no text")
            op_id, kind, scope, run, writer = strings
            if not op_id:
                raise StoreError("it has no id")
            return Event(op_id, kind, scope, run, decode(text), int(schema), writer, int(number))
        except (StoreError, TypeError, ValueError) as error:
            self.note(position, str(error))
            return None

    def entry(self, position: str, fields: Mapping[bytes, bytes]) -> Event | None:
        """As `event`, from the fields of a stream's entry."""
        try:
            strings = [fields[name].decode() for name in _FIELDS]
            writer, number = fields.get(b"writer", b"").decode(), fields.get(b"number", b"-1")
            text, schema = fields[b"data"], fields.get(b"schema", b"0")
        except (KeyError, ValueError) as error:
            self.note(position, f"it has no field {error}, or one that is no text")
            return None
        return self.event(position, (*strings, writer, number), text, schema)

    def note(self, position: str, why: str) -> None:
        """Note that an entry is no event."""
        if not self:
            logger.warning(
                "store %s, entry %s is no event and is passed over: %s; to see all of them: "
                "esper store check",
                self._address,
                position,
                why,
            )
        if len(self) < _MOST:
            self[position] = why
