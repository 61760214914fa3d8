"""Gate: what every request passes: its key, its size, how many there are; and what is counted.

A plain ASGI middleware, because those of Starlette read the body of a request in another task.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, final

from starlette.exceptions import HTTPException

from esper.contracts.errors import ConfigError
from esper.server.keys import Key, Keys, Right
from esper.stores.wire import refusal

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OPEN: Final = ("/healthz", "/readyz")
"""Paths that ask for no key."""

_LOGGED: Final = 500
"""Letters of a path that are logged."""

_READS: Final = (
    "/events/read", "/events/end", "/writers/next", "/writers/missing", "/snapshots/load",
    "/reservations/read",
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits beyond which a request is refused.

    Attributes:
        body_bytes: Size of a request; refused with 413.
        under_way: Requests at one time; refused with 503 and Retry-After.
        per_second: Requests a second of one key, or of one address without keys; refused with 429
            and Retry-After. Short bursts of twice as many pass.
    """

    body_bytes: int = 16 << 20
    under_way: int = 256
    per_second: float = 1000.0


@final
class Meters:
    """Numbers that Prometheus asks for.

    Attributes:
        media_type: Of `text`.
    """

    def __init__(self) -> None:
        import prometheus_client as prometheus  # noqa: PLC0415 (an extra, as the service is)

        self._registry = prometheus.CollectorRegistry()
        self._prometheus = prometheus
        self.media_type = prometheus.CONTENT_TYPE_LATEST
        self._requests = prometheus.Counter(
            "esper_requests", "Requests", ["route", "status"], registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "esper_request_seconds", "Duration of requests", ["route"], registry=self._registry
        )

    def note(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> str:
        """All values, as Prometheus reads them."""
        found: bytes = self._prometheus.generate_latest(self._registry)
        return found.decode()


class _Refused(Exception):  # noqa: N818 (no error of ours: a status)
    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status, self.why, self.headers = status, why, headers


@final
class Gate:
    """Middleware that asks for keys, keeps limits, counts and logs.

    Args:
        app: The application behind it.
        keys: Who may do what.
        limits: Sizes and numbers.
        meters: Take what is counted.
        projects: Names of the projects.
    """

    def __init__(
        self, app: Any, *, keys: Keys, limits: Limits, meters: Meters, projects: frozenset[str]
    ) -> None:
        self._app, self._keys, self._limits, self._meters = app, keys, limits, meters
        self._projects = projects
        self._under_way = 0
        self._spent: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, seen = time.perf_counter(), {"status": 500}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            await send(message)

        name = ""
        self._under_way += 1
        try:
            name = self._admit(scope)
            await self._app(scope, _limited(receive, self._limits.body_bytes), noting)
        except _Refused as refused:
            await _answer(noting, refused)
        finally:
            self._under_way -= 1
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self._meters.note(route, seen["status"], seconds)
            facts = {
                "method": scope["method"],
                "path": scope["path"][:_LOGGED],
                "status": seen["status"],
                "ms": round(1000 * seconds, 2),
                "key": name,
            }
            logger.info("%s", json.dumps(facts))

    def _admit(self, scope: Scope) -> str:
        """Name of the key, or the address, of a request that may pass."""
        if self._under_way > self._limits.under_way:
            raise _Refused(503, "too many requests are under way", retry_after="1")
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise _Refused(413, f"a request may have {self._limits.body_bytes:,} bytes at most")
        if scope["path"] in _OPEN:
            return ""
        key = self._key_of(headers) if self._keys.asked_for else None
        name = key.name if key else str((scope.get("client") or ("?",))[0])
        self._pace(name)
        if key is not None:
            self._require(key, scope)
        return name

    def _key_of(self, headers: dict[bytes, bytes]) -> Key:
        kind, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        try:
            found = self._keys.find(secret.strip()) if kind.lower() == "bearer" else None
        except ConfigError as error:
            logger.error("%s", error)  # noqa: TRY400 (expected)
            raise _Refused(503, "the keys cannot be read now", retry_after="1") from None
        if found is None:
            why = "a key is needed: Authorization: Bearer KEY"
            if secret:
                why = "this key is not known here, or was revoked; give another, or make one: "
                why += "esper key"
            raise _Refused(401, why, www_authenticate="Bearer")
        return found

    def _require(self, key: Key, scope: Scope) -> None:
        project = scope["path"].strip("/").partition("/")[0]
        right: Right = "read"
        if scope["method"] != "GET" and not scope["path"].endswith(_READS):
            right = "write"
        if project in self._projects and not key.allows(project, right):
            raise _Refused(403, f"key {key.name!r} may not {right} project {project!r}")

    def _pace(self, name: str) -> None:
        """A bucket that fills with time, two seconds' worth at most."""
        now, rate = time.monotonic(), self._limits.per_second
        level, at = self._spent.get(name, (2 * rate, now))
        level = min(2 * rate, level + rate * (now - at))
        if level < 1:
            raise _Refused(429, f"{rate:g} requests a second are allowed", retry_after="1")
        self._spent[name] = level - 1, now
        if len(self._spent) > 10_000:
            self._spent.clear()


def _limited(receive: Receive, most: int) -> Receive:
    """A request's body, refused beyond a size, whatever its header said."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:  # inside the application, which knows this kind
            raise HTTPException(413, f"a request may have {most:,} bytes at most")
        return message

    return limited


async def _answer(send: Send, refused: _Refused) -> None:
    body = json.dumps(refusal(refused.why)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [
        (name.replace("_", "-").encode(), value.encode()) for name, value in refused.headers.items()
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
