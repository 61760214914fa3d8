"""The laws of stores, over every store."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from inspect import isabstract
from itertools import count
from pathlib import Path
from pkgutil import iter_modules

import pytest
import redis
import redis.asyncio
from typing_extensions import override

import esper.stores
from esper.stores import STORES, MetricsStore, open_store
from esper.stores.redis import RedisStore
from esper.stores.sqlite import SqliteStore
from esper.testing.store_laws import StoreLaws
from esper.testing.writer_laws import Make
from tests.servers import RedisServer
from tests.services import Service

_PROJECTS = 150
_PROJECT = count()


class TestMemory(StoreLaws):
    @pytest.fixture
    @override
    def make(self) -> Make:
        return lambda: open_store("memory:")


class TestSqlite(StoreLaws):
    @pytest.fixture
    @override
    def make(self, tmp_path: Path) -> Make:
        return lambda: open_store(f"sqlite:///{tmp_path}/history.db")

    @override
    def spoil(self, store: MetricsStore) -> bool:
        assert isinstance(store, SqliteStore)
        with closing(sqlite3.connect(store.path)) as file, file:
            file.execute(
                "INSERT INTO events (op_id, kind, scope, run, data) "
                "VALUES ('x', 'outcome', 's', 'r', '{\"reward\": NaN}')"
            )
        return True


class TestRedisByUrl(StoreLaws):
    @pytest.fixture
    @override
    def make(self, redis_server: RedisServer, redis_key: str) -> Make:
        self.key, self.url = redis_key, redis_server.url
        return lambda: RedisStore.from_url(redis_server.url, key=redis_key)

    @override
    def spoil(self, store: MetricsStore) -> bool:
        with redis.Redis.from_url(self.url) as client:
            client.xadd(f"{{{self.key}}}:scope:s", {"op_id": "x"})
        return True


def _client(**settings: object) -> Callable[[str], redis.Redis]:
    return lambda url: redis.Redis.from_url(url, **settings)


class TestRedisByClient(StoreLaws):
    @pytest.fixture(
        params=[
            pytest.param(_client(), id="bytes"),
            pytest.param(_client(decode_responses=True, protocol=2), id="text, RESP2"),
            pytest.param(_client(decode_responses=True, encoding="latin-1"), id="latin-1"),
        ]
    )
    @override
    def make(
        self, request: pytest.FixtureRequest, redis_server: RedisServer, redis_key: str
    ) -> Iterator[Make]:
        with request.param(redis_server.url) as client:
            yield lambda: RedisStore(client, key=redis_key)


class TestRedisByAsyncClient(StoreLaws):
    @pytest.fixture
    @override
    def make(self, redis_server: RedisServer, redis_key: str) -> Make:
        client = redis.asyncio.Redis.from_url(redis_server.url, decode_responses=True)
        return lambda: RedisStore(client, key=redis_key)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    places = [f"p{number}=sqlite:///{folder}/p{number}.db" for number in range(_PROJECTS)]
    made = Service(folder, "--rate", "1000000", *places).start()
    yield made
    made.kill()


class TestService(StoreLaws):
    """Behind a service, which stands before one SQLite file; each test has a project of its own."""

    @pytest.fixture
    @override
    def make(self, service: Service) -> Make:
        self.url = f"{service.address}/p{next(_PROJECT)}"
        self.files = service.log.parent
        return lambda: open_store(self.url)

    @override
    def spoil(self, store: MetricsStore) -> bool:
        name = self.url.rpartition("/")[2]
        with SqliteStore(self.files / f"{name}.db") as behind:
            return TestSqlite().spoil(behind)


def test_every_store_is_in_the_table() -> None:
    written = set()
    for found in iter_modules(esper.stores.__path__):
        module = import_module(f"esper.stores.{found.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, MetricsStore):
                written.add(thing)
    listed = {STORES.load(name) for name in STORES.names()}
    assert {made for made in written if not isabstract(made)} == listed
