"""The service: its routes, and what its errors look like to a client."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteError

from esper.contracts.errors import (
    ConfigError,
    ConflictError,
    EsperError,
    HoleError,
    LeaseError,
    LossError,
    MeasurementError,
    SelectionError,
    StoreError,
)
from esper.server import bodies, choice_routes
from esper.server.choosers import Choosers
from esper.server.gate import Gate, Limits, Meters
from esper.server.keys import Keys
from esper.server.places import Places
from esper.server.ranks import Settings
from esper.stores import MetricsStore, open_store
from esper.stores.http import CLIENT
from esper.stores.wire import error_data, event_of, refusal, row_of

_LINES = 200
"""Events that are sent at once."""

_TOLD = 5
"""Mistakes of a request that are told at once."""

_STATUS: tuple[tuple[type[EsperError], int], ...] = (
    (ConflictError, 409),
    (HoleError, 409),
    (LeaseError, 409),
    (LossError, 409),
    (SelectionError, 409),
    (StoreError, 503),
    (MeasurementError, 422),
    (ConfigError, 422),
)


def make_app(
    projects: Mapping[str, str],
    *,
    keys: Keys | None = None,
    settings: Settings | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """Make the service.

    Args:
        projects: URL of the store of each project.
        keys: Who may do what; by default everybody everything.
        settings: How it chooses, for those who ask for choices.
        limits: Sizes and numbers beyond which requests are refused.

    Raises:
        ConfigError, StoreError: if a store cannot be opened, or there is no such strategy.
    """
    places = Places(projects)
    choosers = Choosers(lambda project: _own(places, project), settings or Settings())
    meters = Meters()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        choosers.close()
        places.close()

    app = FastAPI(
        title="Esper", version="1", lifespan=lifespan, openapi_url="/openapi.json",
        responses={422: {"model": bodies.Refusal, "description": "What is wrong"}},
    )  # fmt: skip
    app.include_router(_health(places, meters))
    app.include_router(_events(places), prefix="/{project}/v1", tags=["events"])
    app.include_router(_writers(places), prefix="/{project}/v1", tags=["writers"])
    for made in (choice_routes.choices, choice_routes.events):
        app.include_router(made(places, choosers), prefix="/{project}/v1", tags=["choices"])
    app.add_exception_handler(EsperError, _refused)
    app.add_exception_handler(RequestValidationError, _unfit)
    app.add_exception_handler(StarletteError, _no_route)
    app.add_middleware(
        Gate, keys=keys or Keys(None), limits=limits or Limits(), meters=meters,
        projects=frozenset(projects),
    )  # fmt: skip
    return app


def _own(places: Places, project: str) -> MetricsStore:
    shared = places.shared[project]
    return open_store(places.urls[project]) if shared.durable else shared


def _refused(request: Request, error: Exception) -> JSONResponse:
    del request
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse(error_data(error), status, headers)


def _unfit(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)
    found = [
        f"{'.'.join(map(str, one['loc']))} is {one.get('input')!r:.200}: {one['msg']}"
        for one in error.errors()[:_TOLD]
    ]
    # In ASCII: what is refused may be no text that UTF-8 has, as half of a pair of surrogates.
    why = "; ".join(found).encode("ascii", "backslashreplace").decode()
    return JSONResponse(refusal(why), 422)


def _no_route(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, StarletteError)
    return JSONResponse(refusal(error.detail), error.status_code, error.headers)


def _store_of(places: Places) -> Callable[..., MetricsStore]:
    def store(project: str, request: Request) -> MetricsStore:
        try:
            return places.store(project, request.headers.get(CLIENT, "")[:64])
        except KeyError:
            raise HTTPException(404, f"no project {project!r}") from None

    return store


def _health(places: Places, meters: Meters) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """Answer while the process lives."""
        return {"status": "alive"}

    @router.get("/readyz")
    def readyz() -> JSONResponse:
        """Answer 200 if every project's store can be read."""
        found = {}
        for project, store in places.shared.items():
            try:
                store.end("")
                found[project] = "ready"
            except StoreError as error:
                found[project] = str(error)
        ready = set(found.values()) <= {"ready"}
        return JSONResponse(found, 200 if ready else 503)

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Requests by route and status, their durations, and events stored, for Prometheus."""
        return PlainTextResponse(meters.text(), media_type=meters.media_type)

    return router


def _events(places: Places) -> APIRouter:
    router = APIRouter()
    Store = Annotated[MetricsStore, Depends(_store_of(places))]

    @router.get("/store")
    def about(store: Store) -> dict[str, Any]:
        """Identity of the place, and advice about its settings."""
        return {"identity": store.identity, "advice": store.advice()}

    @router.post("/events")
    def append(store: Store, body: bodies.Append) -> dict[str, int]:
        """Store events, all or none; those that are stored already are left out."""
        if body.identity and store.identity and body.identity != store.identity:
            raise LossError("the service has another store than before; what it had is not there")
        store.append([event_of(row) for row in body.events])
        return {"stored": len(body.events)}

    @router.post("/events/read", response_class=StreamingResponse)
    def read(store: Store, body: bodies.Read) -> StreamingResponse:
        """Read events, one JSON list a line; the last line is an object and says how it ended."""
        asked = {"scope": body.scope, "run": body.run, "kinds": body.kinds}
        pairs = store.read(body.after, **asked)  # type: ignore[arg-type]
        return StreamingResponse(_lines(store, pairs), media_type="application/x-ndjson")

    @router.post("/events/end")
    def end(store: Store, body: bodies.OfScope) -> dict[str, str]:
        """Position of the last event of a scope."""
        return {"end": store.end(body.scope)}

    @router.post("/compact")
    def compact(store: Store) -> dict[str, bool]:
        """Give back room that the place does not need."""
        store.compact()
        return {"compacted": True}

    return router


def _lines(store: MetricsStore, pairs: Iterator[tuple[str, Any]]) -> Iterator[str]:
    lines = []
    try:
        for position, event in pairs:
            lines.append(json.dumps([position, *row_of(event)]))
            if len(lines) >= _LINES:
                yield "\n".join([*lines, ""])
                lines.clear()
        lines.append(json.dumps({"quarantined": dict(store.quarantined)}))
    except EsperError as error:  # the status is sent already
        lines.append(json.dumps(error_data(error)))
    yield "\n".join([*lines, ""])


def _writers(places: Places) -> APIRouter:
    router = APIRouter()
    Store = Annotated[MetricsStore, Depends(_store_of(places))]

    @router.post("/writers/next")
    def following(store: Store, body: bodies.OfWriter) -> dict[str, int]:
        """One more than the highest number of a writer's events."""
        return {"next": store.next_number(body.writer)}

    @router.post("/writers/missing")
    def missing(store: Store, body: bodies.Missing) -> dict[str, list[tuple[int, int]]]:
        """Numbers of a writer that are not stored."""
        return {"missing": store.missing(body.writer, body.before)}

    @router.post("/writers/claim")
    def claim(store: Store, body: bodies.Claim) -> dict[str, bool]:
        """Take, or keep, the lease of a writer."""
        store.claim(body.writer, body.holder, body.seconds)
        return {"claimed": True}

    @router.post("/writers/release")
    def release(store: Store, body: bodies.OfWriter) -> dict[str, bool]:
        """Give a lease back."""
        store.release(body.writer)
        return {"released": True}

    @router.post("/reservations")
    def reserve(store: Store, body: bodies.Reserve) -> dict[str, bool]:
        """Reserve a name of a group, unless another holder has it."""
        return {"reserved": store.reserve(body.group, body.name, body.holder, body.seconds)}

    @router.post("/reservations/read")
    def reserved(store: Store, body: bodies.OfGroup) -> dict[str, dict[str, str]]:
        """Names of a group that are reserved now, and the holder of each."""
        return {"reserved": dict(store.reserved(body.group))}

    @router.post("/snapshots/load")
    def load(store: Store, body: bodies.OfSnapshot) -> dict[str, str | None]:
        """Text of a snapshot, if there is one."""
        return {"text": store.load_snapshot(body.name)}

    @router.post("/snapshots/save")
    def save(store: Store, body: bodies.Snapshot) -> dict[str, bool]:
        """Keep a snapshot in place of an earlier one."""
        store.save_snapshot(body.name, body.text)
        return {"saved": True}

    return router
