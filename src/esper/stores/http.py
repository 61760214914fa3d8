"""HttpStore: a history behind a service, which `esper serve` offers, shared by any machines."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from secrets import token_hex
from typing import Any, Final, Self, final
from urllib.parse import unquote, urlsplit

from typing_extensions import override

from esper.contracts.errors import ConfigError, LossError, StoreError
from esper.contracts.events import Event
from esper.stores.base import MetricsStore
from esper.stores.payload import checked, chosen
from esper.stores.wire import error_from, event_of, row_of

PROJECT: Final = "main"
"""Project of an address that names none."""

CLIENT: Final = "Esper-Client"
"""Header that names a client; the leases that it claims are its own."""

_TIMEOUTS_S: Final = 2.0, 10.0
"""Longest wait for a connection, and for each part of an answer."""

_REFUSED: Final = {
    401: "asks for a key, or does not know this one; write http://:KEY@host/project, or set "
    "$ESPER_STORE_PASSWORD",
    404: "has no such project, or is no service of esper's",
}


@final
class HttpStore(MetricsStore):
    """Client of a service. Safe to use from several threads; a fork opens its own.

    Nothing is repeated here: a write that failed without an answer may be repeated by the caller,
    since events count once.

    Args:
        url: ``http://host:8000/project`` or ``https://``, with the key as password:
            ``http://:KEY@host:8000/project``.

    Raises:
        ConfigError: if the URL cannot be read, or urllib3 is missing.
        StoreError: if the service cannot be reached, or refuses.
    """

    def __init__(self, url: str) -> None:
        self.address, key = _address_and_key(url)
        self._pool = _pool()
        self._headers = {CLIENT: token_hex(8), "Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._quarantined: dict[str, str] = {}
        self._closed = False
        self._advice = self._about()

    @classmethod
    @override
    def from_url(cls, url: str) -> Self:
        return cls(url)

    @property
    @override
    def identity(self) -> str:
        return self._identity

    @property
    @override
    def quarantined(self) -> Mapping[str, str]:
        return self._quarantined

    @override
    def append(self, events: Sequence[Event]) -> None:
        rows = [row_of(event) for event in checked(events)]
        try:
            self._ask("POST", "events", {"events": rows, "identity": self._identity})
        except LossError:
            self._about()  # told once; from now on it is that place
            raise

    @override
    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        wanted = chosen(kinds)
        if after and not (after.isascii() and after.isdecimal() and len(after) < 19):
            raise StoreError(
                f"{after!r} is no position in store {self.address}; pass one that read() gave, "
                "or ''"
            )
        query = {
            "after": after,
            "scope": scope,
            "run": run,
            "kinds": None if wanted is None else sorted(wanted),
        }
        return self._rows(self._open("POST", "events/read", query, stream=True))

    @override
    def end(self, scope: str) -> str:
        return str(self._ask("POST", "events/end", {"scope": scope})["end"])

    @override
    def next_number(self, writer: str) -> int:
        return int(self._ask("POST", "writers/next", {"writer": writer})["next"])

    @override
    def missing(self, writer: str, before: int) -> list[tuple[int, int]]:
        found = self._ask("POST", "writers/missing", {"writer": writer, "before": before})
        return [(int(first), int(last)) for first, last in found["missing"]]

    @override
    def claim(self, writer: str, holder: str, seconds: float) -> None:
        asked = {"writer": writer, "holder": holder, "seconds": seconds}
        self._ask("POST", "writers/claim", asked)

    @override
    def release(self, writer: str) -> None:
        self._ask("POST", "writers/release", {"writer": writer})

    @override
    def reserve(self, group: str, name: str, holder: str, seconds: float) -> bool:
        asked = {"group": group, "name": name, "holder": holder, "seconds": seconds}
        return bool(self._ask("POST", "reservations", asked)["reserved"])

    @override
    def reserved(self, group: str) -> Mapping[str, str]:
        found = self._ask("POST", "reservations/read", {"group": group})["reserved"]
        return {str(name): str(holder) for name, holder in found.items()}

    @override
    def advice(self) -> list[str]:
        return self._advice

    @override
    def compact(self) -> None:
        self._ask("POST", "compact")

    @override
    def load_snapshot(self, name: str) -> str | None:
        text = self._ask("POST", "snapshots/load", {"name": name})["text"]
        return None if text is None else str(text)

    @override
    def save_snapshot(self, name: str, text: str) -> None:
        self._ask("POST", "snapshots/save", {"name": name, "text": text})

    @override
    def close(self) -> None:
        self._closed = True
        self._pool.clear()

    def _about(self) -> list[str]:
        """Ask for the identity, which is kept, and for advice."""
        about = self._ask("GET", "store")
        self._identity = str(about["identity"])
        return [str(line) for line in about["advice"]]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._open(method, path, body, stream=False)
        return self._parsed(answer.data)

    def _open(self, method: str, path: str, body: Any, *, stream: bool) -> Any:
        """Answer to a request, refusals raised."""
        if self._closed:
            raise StoreError(f"store {self.address} is closed; open it again")
        import urllib3  # noqa: PLC0415 (there is a pool, so it is there)

        text = None if body is None else json.dumps(body, allow_nan=False)
        url = f"{self.address}/v1/{path}"
        try:
            answer = self._pool.request(
                method, url, body=text, headers=self._headers, preload_content=not stream
            )
            if answer.status < 300:
                return answer
            data = answer.read() if stream else answer.data
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        raise self._refusal(answer.status, data)

    def _rows(self, answer: Any) -> Iterator[tuple[str, Event]]:
        """Events of a stream of lines, whose last one says that it is whole."""
        import urllib3  # noqa: PLC0415

        rest = b""
        try:
            for part in answer.stream(65_536):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    found = self._parsed(line)
                    if isinstance(found, dict):
                        if "error" in found:
                            raise error_from(found)
                        self._quarantined |= found["quarantined"]
                        return
                    position, *row = found
                    yield str(position), event_of(row)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            answer.close()
        raise StoreError(f"store {self.address}: the answer was cut off; read again")

    def _parsed(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise StoreError(
                f"{self.address} is no service of esper's: its answer is {text[:80]!r}"
            ) from error

    def _refusal(self, status: int, text: bytes) -> ConfigError | StoreError:
        try:
            data = json.loads(text)
        except ValueError:
            data = {}
        if status not in _REFUSED and isinstance(data, dict) and "error" in data:
            return error_from(data)
        why = _REFUSED.get(status, f"answers with status {status}")
        return StoreError(f"the service at {self.address} {why}")

    def _unreachable(self, error: Exception) -> StoreError:
        reason = getattr(error, "reason", None) or error
        return StoreError(
            f"the service at {self.address} cannot be reached: {type(reason).__name__}: {reason}"
        )


def _address_and_key(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        host, port, key = parts.hostname, parts.port, unquote(parts.password or "")
    except ValueError:
        host = port = None
        key = ""
    if not host or parts.query or parts.fragment:
        # The URL is not shown: it may hold the key.
        raise ConfigError(
            "the URL of the service cannot be read; write http://:KEY@host:8000/project"
        )
    place = f"[{host}]" if ":" in host else host
    place += "" if port is None else f":{port}"
    return f"{parts.scheme}://{place}{parts.path.rstrip('/') or f'/{PROJECT}'}", key


def _pool() -> Any:
    try:
        import urllib3  # noqa: PLC0415 (an extra; only those who use it pay for it)
    except ModuleNotFoundError as error:
        raise ConfigError(
            'a store behind a service needs urllib3: pip install "esper-morph[http]"'
        ) from error
    connect, read = _TIMEOUTS_S
    timeout = urllib3.Timeout(connect=connect, read=read)
    return urllib3.PoolManager(retries=False, timeout=timeout, maxsize=8)
