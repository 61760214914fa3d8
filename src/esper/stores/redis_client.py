"""Clients of a Redis or Valkey server: their addresses, retries and synchronous twins."""

import inspect
from typing import TYPE_CHECKING, Any

from esper.contracts.errors import ConfigError

if TYPE_CHECKING:
    import redis

_MISSING = 'a Redis store needs redis-py: pip install "esper-morph[redis]"'
_SHARED_SETTINGS = (
    *("host", "port", "db", "path", "username", "password", "credential_provider"),
    *("socket_timeout", "socket_connect_timeout", "client_name", "protocol"),
)


def client_of(url: str) -> "redis.Redis":
    """Synchronous client for a URL, as redis-py reads it, with short timeouts and two retries.

    Raises:
        ConfigError: if the URL cannot be read, or redis-py is missing.
    """
    try:
        import redis  # noqa: PLC0415 (an extra; only those who use it pay for it)
    except ModuleNotFoundError as error:
        raise ConfigError(_MISSING) from error
    settings = {"socket_timeout": 5.0, "socket_connect_timeout": 2.0, "retry": _two_retries()}
    try:
        client = redis.Redis.from_url(url, **settings)
        client.connection_pool.make_connection()  # an unknown query parameter shows here
    except (ValueError, TypeError, AttributeError):
        # Neither the URL nor its parser's complaint is shown: both can hold the password.
        raise ConfigError(
            "the Redis URL cannot be read; write redis://:password@host:6379/0 (rediss:// for "
            "TLS, unix:///path.sock?db=0), with / # ? @ in the password as %2F %23 %3F %40, and "
            "only parameters that redis-py knows, as ?socket_timeout=1"
        ) from None
    return client


def is_async(client: Any) -> bool:
    """Test whether a client is one of asyncio."""
    return inspect.iscoroutinefunction(client.execute_command)


def advice_of(client: Any, address: str) -> list[str]:
    """Sentences about settings of a server that let it lose events; empty if all is well."""
    import redis  # noqa: PLC0415 (there is a client, so it is there)

    try:
        parts = [client.info(part) for part in ("persistence", "memory", "replication")]
    except redis.RedisError:  # forbidden
        return []
    found: dict[str, Any] = {}
    for part in parts:
        found |= part
    told = []
    if found.get("aof_enabled") == 0:
        told.append(
            f"store {address} has no append-only file: a restart loses events; start the server "
            "with: appendonly yes"
        )
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        told.append(
            f"store {address} evicts keys when its memory is full (maxmemory-policy {policy}): "
            "events would be lost; set: maxmemory-policy noeviction"
        )
    if found.get("role", "master") != "master":
        told.append(
            f"store {address} is a replica, which takes no events; give the address of its master"
        )
    return told


def _two_retries() -> Any:
    # Without jitter: redis-py draws it from the global generator, which is the user's.
    from redis.backoff import ExponentialBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    return Retry(ExponentialBackoff(cap=0.5, base=0.05), 2)


def address_of(client: Any) -> str:
    """Address of a client's server, without a login."""
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


def sync_twin(client: Any) -> "redis.Redis":
    """Synchronous client with the address, login and timeouts of an asynchronous one.

    Raises:
        ConfigError: if the client is one of a cluster.
    """
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
