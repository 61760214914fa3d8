"""The laws of stores, over every store."""

from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from pkgutil import iter_modules

import pytest
import redis
import redis.asyncio
from typing_extensions import override

import esper.stores
from esper.stores import STORES, MetricsStore, open_store
from esper.stores.redis import RedisStore
from esper.testing.store_laws import Make, StoreLaws
from tests.servers import RedisServer


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


class TestRedisByUrl(StoreLaws):
    @pytest.fixture
    @override
    def make(self, redis_server: RedisServer, redis_key: str) -> Make:
        return lambda: RedisStore.from_url(redis_server.url, key=redis_key)


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


def test_every_store_is_in_the_table() -> None:
    written = set()
    for found in iter_modules(esper.stores.__path__):
        module = import_module(f"esper.stores.{found.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, MetricsStore):
                written.add(thing)
    listed = {STORES.load(name) for name in STORES.names()}
    assert {made for made in written if not isabstract(made)} == listed
