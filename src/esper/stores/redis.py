"""RedisStore: a stream on a Redis or Valkey server, shared by any number of machines."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.stores.base import MetricsStore
from esper.stores.payload import checked, chosen, decode, encode

if TYPE_CHECKING:
    import redis
    import redis.asyncio

SCHEMA_VERSION = 1
_PAGE = 1000
_BATCH_LIMIT = 100_000  # a server takes about a million arguments in one command
_FIELDS = (b"op_id", b"kind", b"scope", b"run", b"data")
_EVENT_SCHEMA = b"schema"  # missing in entries of version 0

# The whole batch or nothing: both keys are checked before the first write, and no other client
# is served in between. KEYS: stream, set of op ids, schema version.
_APPEND = """
for index, kind in ipairs({'stream', 'set'}) do
  local found = redis.call('TYPE', KEYS[index])['ok']
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[index] .. ' is a ' .. found)
  end
end
local version = redis.call('GET', KEYS[3])
if not version then
  redis.call('SET', KEYS[3], ARGV[1])
elseif version ~= ARGV[1] then
  return redis.error_reply('ESPERSCHEMA ' .. version)
end
for i = 2, #ARGV, 6 do
  if redis.call('SADD', KEYS[2], ARGV[i]) == 1 then
    redis.call('XADD', KEYS[1], '*', 'op_id', ARGV[i], 'kind', ARGV[i + 1],
               'scope', ARGV[i + 2], 'run', ARGV[i + 3], 'data', ARGV[i + 4],
               'schema', ARGV[i + 5])
  end
end
return #ARGV
"""
_MISSING = 'a Redis store needs redis-py: pip install "esper-morph[redis]"'
_SHARED_SETTINGS = (
    *("host", "port", "db", "path", "username", "password", "credential_provider"),
    *("socket_timeout", "socket_connect_timeout", "client_name", "protocol"),
)


@final
class RedisStore(MetricsStore):
    """One stream, and the set of operation ids in it; neither ever expires.

    A batch is appended by one Lua script, so it is whole or absent, and a batch that is sent again
    because the answer was lost counts once. Positions are the ids of the stream. Durability is the
    server's: give it an append-only file (``appendonly yes``). Reads filter on the client's side
    and transfer the whole log, so give unlike projects different keys.

    Args:
        client: A ``redis.Redis`` or ``redis.RedisCluster``, used as it is (its timeouts and
            retries, ``decode_responses`` on or off) and left open by ``close``; or a
            ``redis.asyncio.Redis``, **of which only the address, login and timeouts are used**, to
            make a synchronous client: a write then belongs to no event loop.
        key: First part of the three keys, ``{key}:events``, ``{key}:op_ids``, ``{key}:schema``;
            the braces keep them on one node of a cluster.

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
        self._mine = inspect.iscoroutinefunction(client.execute_command)
        self._client: Any = _sync_twin(client) if self._mine else client
        self.address = _address(self._client)
        self._keys = [f"{{{key}}}:{part}".encode() for part in ("events", "op_ids", "schema")]
        self._script = self._client.register_script(_APPEND)
        self._closed = False
        with self._talking():
            self._check_schema(self._fetch("GET", self._keys[2]))

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
        try:
            import redis  # noqa: PLC0415 (an extra; only those who use it pay for it)
        except ModuleNotFoundError as error:
            raise ConfigError(_MISSING) from error
        settings = {"socket_timeout": 5.0, "socket_connect_timeout": 2.0, "retry": _two_retries()}
        try:
            client = redis.Redis.from_url(url, **settings)
        except (ValueError, TypeError):
            # Neither the URL nor its parser's complaint is shown: both can hold the password.
            raise ConfigError(
                "the Redis URL cannot be read; write redis://:password@host:6379/0 (rediss:// for "
                "TLS, unix:///path.sock?db=0), with / # ? @ in the password as %2F %23 %3F %40"
            ) from None
        try:
            store = cls(client, key=key)
        except StoreError:
            client.close()
            raise
        store._mine = True
        return store

    @override
    def append(self, events: Sequence[Event]) -> None:
        new = checked(events)
        if len(new) > _BATCH_LIMIT:
            raise StoreError(
                f"store {self.address}: {len(new)} events in one batch; append at most "
                f"{_BATCH_LIMIT} at once"
            )
        self._check_open()
        if not new:
            return
        arguments: list[bytes] = [str(SCHEMA_VERSION).encode()]
        for event in new:
            names = (event.op_id, event.kind, event.scope, event.run)
            texts = (*names, encode(event.data), str(event.schema))
            arguments.extend(text.encode() for text in texts)
        with self._talking():
            self._script(keys=self._keys, args=arguments)

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
        with self._talking():
            last = self._fetch("XREVRANGE", self._keys[0], b"+", b"-", b"COUNT", b"1")
        if not last:
            return iter(())
        return (
            (position, self._event(position, fields))
            for position, fields in self._pages(start, last[0][0])
            if (scope is None or fields.get(b"scope") == scope.encode())
            and (run is None or fields.get(b"run") == run.encode())
            and (wanted is None or fields.get(b"kind") in wanted)
        )

    @override
    def close(self) -> None:
        self._closed = True
        if self._mine:
            self._client.close()

    def _pages(self, start: bytes, end: bytes) -> Iterator[tuple[str, Mapping[bytes, bytes]]]:
        while True:
            self._check_open()
            with self._talking():
                page = self._fetch(
                    "XRANGE", self._keys[0], start, end, b"COUNT", str(_PAGE).encode()
                )
            for position, fields in page:
                yield position.decode(), fields
            if len(page) < _PAGE:
                return
            start = b"(" + page[-1][0]

    def _event(self, position: str, fields: Mapping[bytes, bytes]) -> Event:
        try:
            op_id, kind, scope, run, data = (fields[name] for name in _FIELDS)
        except KeyError as error:
            raise StoreError(
                f"store {self.address}: entry {position} of {self._keys[0].decode()} is no event: "
                f"it has no field {error}; was it written by another program?"
            ) from error
        names = (op_id.decode(), kind.decode(), scope.decode(), run.decode())
        return Event(*names, decode(data), int(fields.get(_EVENT_SCHEMA, b"0")))

    def _fetch(self, *command: str | bytes) -> Any:
        # Bytes whatever the client's decode_responses says.
        return self._client.execute_command(*command, NEVER_DECODE=[])

    @contextmanager
    def _talking(self) -> Iterator[None]:
        import redis  # noqa: PLC0415 (there is a client, so it is there)

        try:
            yield
        except redis.RedisError as error:
            if str(error).startswith("ESPERSCHEMA"):
                self._check_schema(str(error).split()[1].encode())
            raise StoreError(
                f"store {self.address} does not answer as it should: {error}; check that the "
                "server runs, that the login is right and that it may write"
            ) from error

    def _check_schema(self, version: bytes | None) -> None:
        if version is None or version == str(SCHEMA_VERSION).encode():
            return
        raise StoreError(
            f"store {self.address}, key {self._keys[2].decode()} has schema version "
            f"{version.decode(errors='replace')}, not the {SCHEMA_VERSION} that this Esper knows; "
            "upgrade with: pip install -U esper-morph, or use another key"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"store {self.address} is closed; open it again")

    def _position(self, after: str) -> bytes:
        if not after:
            return b"-"
        milliseconds, _, count = after.partition("-")
        if after.isascii() and milliseconds.isdecimal() and count.isdecimal():
            return b"(" + after.encode()
        raise StoreError(
            f"{after!r} is no position in store {self.address}; pass one that read() gave, or ''"
        )


def _two_retries() -> Any:
    from redis.backoff import ExponentialWithJitterBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    return Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), 2)


def _address(client: Any) -> str:
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return "redis cluster"
    settings = pool.connection_kwargs
    if "path" in settings:
        return f"unix://{settings['path']}?db={settings.get('db', 0)}"
    host, port = settings.get("host", "localhost"), settings.get("port", 6379)
    return f"{'rediss' if _is_tls(pool) else 'redis'}://{host}:{port}/{settings.get('db', 0)}"


def _is_tls(pool: Any) -> bool:
    return any(base.__name__ == "SSLConnection" for base in pool.connection_class.__mro__)


def _sync_twin(client: Any) -> "redis.Redis":
    import redis  # noqa: PLC0415

    pool = getattr(client, "connection_pool", None)
    if pool is None:
        raise ConfigError(
            f"a {type(client).__module__}.{type(client).__name__} has no one address to use; pass "
            "a synchronous redis.RedisCluster"
        )
    given = pool.connection_kwargs
    settings = {key: given[key] for key in _SHARED_SETTINGS if given.get(key) is not None}
    made: Any = redis.Connection
    if "path" in settings:
        made = redis.UnixDomainSocketConnection
    elif _is_tls(pool):
        made = redis.SSLConnection
        settings |= {k: v for k, v in given.items() if k.startswith("ssl_") and v is not None}
    return redis.Redis(
        connection_pool=redis.ConnectionPool(
            connection_class=made, retry=_two_retries(), **settings
        )
    )
