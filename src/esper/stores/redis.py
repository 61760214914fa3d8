"""RedisStore: a stream for each scope on a Redis or Valkey server, shared by many machines."""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Self, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, LossError, StoreError
from esper.contracts.events import Event, first_number
from esper.stores import leases, redis_scripts
from esper.stores.base import MetricsStore
from esper.stores.payload import checked, chosen, conflict, encode, require_no_hole
from esper.stores.quarantine import Quarantine
from esper.stores.redis_client import address_of, advice_of, client_of, is_async, sync_twin

if TYPE_CHECKING:
    import redis
    import redis.asyncio

SCHEMA_VERSION = 2
_PAGE, _BATCH_LIMIT = 1000, 50_000  # a server takes about a million arguments in one command


@final
class RedisStore(MetricsStore):
    """A stream for each scope, and what guards them; nothing ever expires.

    A batch is appended by one Lua script, so it is whole or absent, and a batch that is sent again
    because the answer was lost counts once. Positions are microseconds of the server's clock, and
    grow even if that goes back. Durability is the server's: give it an append-only file
    (``appendonly yes``) and ``maxmemory-policy noeviction``; `advice` says what is amiss. Events
    that the server lost all the same are missed by the next append or read, as a `LossError`.

    Args:
        client: A ``redis.Redis`` or ``redis.RedisCluster``, used as it is (its timeouts and
            retries, ``decode_responses`` on or off) and left open by ``close``. redis-py's default
            retries draw their waits from Python's global generator; a client made with ``retry=
            Retry(ExponentialBackoff(), 3)`` does not, so that an outage moves no training. Or a
            ``redis.asyncio.Redis``, **of which only the address, login and timeouts are used**, to
            make a synchronous client: a write then belongs to no event loop.
        key: First part of the keys, ``{key}:meta``, ``{key}:scope:NAME`` and so on; the braces
            keep them on one node of a cluster.

    Raises:
        ConfigError: if ``key`` is empty, or the client is an asynchronous one of a cluster.
        StoreError: if the server cannot be reached or the key is of a newer schema.
    """

    def __init__(
        self,
        client: "redis.Redis | redis.RedisCluster | redis.asyncio.Redis",
        *,
        key: str = "esper",
    ) -> None:
        if not key:
            raise ConfigError("a Redis store's key is empty; name one, as key='esper'")
        self._mine = is_async(client)
        self._client: Any = sync_twin(client) if self._mine else client
        self.address = address_of(self._client)
        self._prefix = f"{{{key}}}:".encode()
        self._keys = [self._prefix + part.encode() for part in redis_scripts.PARTS]
        self._append = self._client.register_script(redis_scripts.APPEND)
        self._quarantine = Quarantine(self.address)
        self._claims: dict[str, str] = {}
        self._identity = ""
        self._closed = False
        with self._talking():
            self._check_schema(self._fetch("GET", self._keys[0]))
        self._begin()

    @classmethod
    @override
    def from_url(cls, url: str, *, key: str = "esper") -> Self:
        """Connect to ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads them.

        A write is given up after two repetitions; query parameters such as ``?socket_timeout=1``
        (seconds) or ``?protocol=2`` pass through.

        Raises:
            ConfigError: if the URL cannot be read, or redis-py is missing.
            StoreError: if the server cannot be reached or the key is of a newer schema.
        """
        client = client_of(url)
        try:
            store = cls(client, key=key)
        except StoreError:
            client.close()
            raise
        store._mine = True
        return store

    @property
    @override
    def identity(self) -> str:
        return self._identity

    @property
    @override
    def quarantined(self) -> Mapping[str, str]:
        return self._quarantine

    @override
    def append(self, events: Sequence[Event]) -> None:
        new = checked(events)
        if len(new) > _BATCH_LIMIT:
            most = f"append at most {_BATCH_LIMIT} at once"
            raise StoreError(f"store {self.address}: {len(new)} events in one batch; {most}")
        self._check_open()
        if not self._identity:
            self._begin(required=True)
        if new:
            self._send(new)

    @override
    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        names = chosen(kinds)
        wanted = None if names is None else {name.encode() for name in names}
        self._check_open()
        start = self._position(after)
        self._check_place()
        logs = [
            self._entries(start, *found)
            for one in self._scopes(scope)
            if (found := self._checked_end(one)) is not None
        ]
        return self._events(heapq.merge(*logs, key=lambda pair: int(pair[0])), run, wanted)

    @override
    def end(self, scope: str) -> str:
        self._check_open()
        with self._talking():
            found = self._last(self._stream(scope))
        return found.partition(b"-")[0].decode() or "0"

    @override
    def next_number(self, writer: str) -> int:
        self._check_open()
        with self._talking():
            return int(self._fetch("HGET", self._keys[3], writer.encode()) or 0)

    @override
    def claim(self, writer: str, holder: str, seconds: float) -> None:
        replaced = ""
        while True:
            found = self._run(redis_scripts.CLAIM, writer, holder, repr(seconds), replaced)
            if not found:
                break
            replaced = found[0].decode()
            if not leases.yields(replaced, holder):
                raise leases.taken(self.address, writer, replaced, float(found[1]))
        self._claims[writer] = holder

    @override
    def release(self, writer: str) -> None:
        holder = self._claims.pop(writer, None)
        if holder is not None:
            self._run(redis_scripts.RELEASE, writer, holder)

    @override
    def reserve(self, group: str, name: str, holder: str, seconds: float) -> bool:
        asked = redis_scripts.RESERVE, name, holder, repr(seconds)
        return bool(self._run(*asked, part="reserved:" + group))

    @override
    def reserved(self, group: str) -> Mapping[str, str]:
        found = self._run(redis_scripts.RESERVED, part="reserved:" + group)
        pairs = zip(found[::2], found[1::2], strict=True)
        return {name.decode(): by.decode() for name, by in pairs}

    @override
    def advice(self) -> list[str]:
        return advice_of(self._client, self.address)

    @override
    def compact(self) -> None:
        self._check_open()
        with self._talking():
            self._fetch("BGREWRITEAOF")

    @override
    def load_snapshot(self, name: str) -> str | None:
        self._check_open()
        with self._talking():
            found = self._fetch("HGET", self._prefix + b"snapshots", name.encode())
        return None if found is None else str(found.decode())

    @override
    def save_snapshot(self, name: str, text: str) -> None:
        self._check_open()
        with self._talking():
            self._fetch("HSET", self._prefix + b"snapshots", name.encode(), text.encode())

    @override
    def close(self) -> None:
        self._closed = True
        if self._mine:
            self._client.close()

    def _send(self, events: Sequence[Event]) -> None:
        scopes = {
            scope: index for index, scope in enumerate(dict.fromkeys(e.scope for e in events), 1)
        }
        writers = {event.writer for event in events if event.number >= 0}
        claims = [pair for pair in self._claims.items() if pair[0] in writers]
        arguments = [str(SCHEMA_VERSION), self._identity, str(len(claims))]
        for pair in claims:
            arguments.extend(pair)
        for event in events:
            arguments.extend(
                (
                    *(str(scopes[event.scope]), event.op_id, event.kind, event.scope, event.run),
                    *(encode(event.data), str(event.schema), event.writer, str(event.number)),
                    str(first_number(event)),
                )
            )
        keys = [*self._keys, *map(self._stream, scopes)]
        with self._talking():
            answer: Any = self._append(keys=keys, args=[text.encode() for text in arguments])
        said, *facts = [one.decode() if isinstance(one, bytes) else one for one in answer]
        if said == "schema":
            self._check_schema(str(facts[0]).encode())
        elif said == "loss":
            raise self._lost(scopes)
        elif said == "lease":
            raise leases.lost(self.address, claims[int(facts[0]) - 1][0])
        elif said == "hole":
            require_no_hole(self.address, int(facts[1]), events[int(facts[0])])
        elif said == "conflict":
            raise conflict(self.address, [events[int(index)].op_id for index in facts])

    def _begin(self, *, required: bool = False) -> None:
        """Make the place, or find its identity; take in what an older version left there."""
        import redis  # noqa: PLC0415 (there is a client, so it is there)

        try:
            with self._talking():
                said, found = self._eval(
                    redis_scripts.BEGIN, self._keys, str(SCHEMA_VERSION), token_hex(8)
                )
        except StoreError as error:
            if required or isinstance(error.__cause__, redis.ConnectionError | redis.TimeoutError):
                raise
            return  # a replica, a full server or a key of another program: it can still be read
        if said == b"schema":
            self._check_schema(found)
        self._identity = found.decode()
        old = self._prefix + b"events"
        with self._talking():
            if self._fetch("TYPE", old) != b"stream":
                return
        pairs = self._entries(b"-", old, self._last(old))
        events = [event for _, event in self._events(pairs, None, None)]
        for first in range(0, len(events), _PAGE):
            self._send(checked(events[first : first + _PAGE]))
        with self._talking():
            self._fetch("DEL", old, self._prefix + b"op_ids")

    def _lost(self, scopes: Collection[str] = ()) -> LossError:
        """Take stock of what is left, and say what is lost."""
        pattern = self._prefix.replace(b"[", b"\\[").replace(b"*", b"\\*") + b"scope:*"
        with self._talking():
            found = {_as_bytes(key) for key in self._client.scan_iter(match=pattern, count=1000)}
            keys = sorted(found | {self._stream(scope) for scope in scopes})
            identity, lost = self._eval(
                redis_scripts.REBUILD, [*self._keys, *keys], str(SCHEMA_VERSION), token_hex(8)
            )
        before, self._identity = self._identity, identity.decode()
        if self._identity == before:
            return LossError(
                f"store {self.address} has lost {lost} events: keys were evicted or deleted, or "
                "the stream was cut; see: maxmemory-policy noeviction"
            )
        return LossError(
            f"store {self.address} is not the store that it was: the server was restarted without "
            "an append-only file, emptied or replaced; see: appendonly yes"
        )

    def _scopes(self, scope: str | None) -> list[str]:
        if scope is not None:
            return [scope]
        with self._talking():
            return [name.decode() for name in self._fetch("HKEYS", self._keys[5])]

    def _checked_end(self, scope: str) -> tuple[bytes, bytes] | None:
        """Key of a scope's stream and its last position; ``None`` if it has no events.

        Raises:
            LossError: if the stream, or the store, is not what it was.
        """
        key = self._stream(scope)
        with self._talking():
            count = self._fetch("HGET", self._keys[5], scope.encode())
            length, last = self._fetch("XLEN", key), self._last(key)
        if self._identity and length < int(count or 0):
            raise self._lost([scope])
        return (key, last) if last else None

    def _check_place(self) -> None:
        with self._talking():
            found = self._fetch("HMGET", self._keys[1], b"identity", b"scopes")
            scopes = self._fetch("HLEN", self._keys[5])
        identity, count = found[0] or b"", int(found[1] or 0)
        if self._identity and (identity.decode() != self._identity or scopes < count):
            raise self._lost()

    def _last(self, stream: bytes) -> bytes:
        found = self._fetch("XREVRANGE", stream, b"+", b"-", b"COUNT", b"1")
        return bytes(found[0][0]) if found else b""

    def _entries(
        self, start: bytes, stream: bytes, end: bytes
    ) -> Iterator[tuple[str, Mapping[bytes, bytes]]]:
        while True:
            self._check_open()
            with self._talking():
                page = self._fetch("XRANGE", stream, start, end, b"COUNT", str(_PAGE).encode())
            for position, fields in page:
                yield position.partition(b"-")[0].decode(), fields
            if len(page) < _PAGE:
                return
            start = b"(" + page[-1][0]

    def _events(
        self,
        entries: Iterator[tuple[str, Mapping[bytes, bytes]]],
        run: str | None,
        kinds: Collection[bytes] | None,
    ) -> Iterator[tuple[str, Event]]:
        for position, fields in entries:
            if run is not None and fields.get(b"run") != run.encode():
                continue
            if kinds is not None and fields.get(b"kind") not in kinds:
                continue
            event = self._quarantine.entry(position, fields)
            if event is not None:
                yield position, event

    def _stream(self, scope: str) -> bytes:
        return self._prefix + b"scope:" + scope.encode()

    def _position(self, after: str) -> bytes:
        if not after:
            return b"-"
        if after.isascii() and after.isdecimal() and len(after) < 20:
            return b"(" + after.encode() + b"-0"
        raise StoreError(
            f"{after!r} is no position in store {self.address}; pass one that read() gave, or ''"
        )

    def _run(self, script: str, *arguments: str, part: str = "leases") -> Any:
        self._check_open()
        with self._talking():
            return self._eval(script, [self._prefix + part.encode()], *arguments)

    def _eval(self, script: str, keys: Sequence[bytes], *arguments: str) -> Any:
        return self._fetch("EVAL", script.encode(), str(len(keys)), *keys, *arguments)

    def _fetch(self, *command: str | bytes) -> Any:
        # Bytes whatever the client's decode_responses says.
        return self._client.execute_command(*command, NEVER_DECODE=[])

    @contextmanager
    def _talking(self) -> Iterator[None]:
        import redis  # noqa: PLC0415 (there is a client, so it is there)

        try:
            yield
        except redis.RedisError as error:
            raise StoreError(
                f"store {self.address} does not answer as it should: {error}; check that the "
                "server runs, that the login is right and that it may write"
            ) from error

    def _check_schema(self, version: bytes | None) -> None:
        if version is None or version in {b"%d" % known for known in range(1, SCHEMA_VERSION + 1)}:
            return
        raise StoreError(
            f"store {self.address}, key {self._keys[0].decode()} has schema version "
            f"{version.decode(errors='replace')}, not the {SCHEMA_VERSION} that this Esper knows; "
            "upgrade with: pip install -U esper-morph, or use another key"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"store {self.address} is closed; open it again")


def _as_bytes(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode()
