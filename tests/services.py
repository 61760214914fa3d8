"""A real service for tests: a process of ``esper serve``, started, killed, stalled, restarted."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import final

import urllib3

_PATIENCE_S = 60.0


@final
class Service:
    """One service on a free port of this machine; its log is in ``folder``.

    With ``ca``, a file with the certificate of an authority, it is asked over TLS.
    """

    def __init__(self, folder: Path, *arguments: str, ca: Path | None = None) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.address = f"{'https' if ca else 'http'}://127.0.0.1:{self.port}"
        self._pool = urllib3.PoolManager(ca_certs=str(ca) if ca else None)
        self.url = f"{self.address}/main"
        self.log = folder / f"service-{self.port}.log"
        command = [sys.executable, "-m", "esper", "serve", "--port", str(self.port)]
        self._command = [*command, *arguments]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, files: int | None = None) -> "Service":
        """Start, or start again on the same port, and wait until it answers.

        Args:
            files: Limit of its open files.
        """
        limit = [] if files is None else ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*limit, *self._command], stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                if self.ask("GET", "/healthz").status == 200:
                    return self
            except urllib3.exceptions.HTTPError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no service:\n{self.log.read_text()}") from error
                time.sleep(0.05)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        """Answer to one request."""
        return self._pool.request(
            method, self.address + path, headers=headers, retries=False, timeout=20.0, json=body
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL, stalled or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """End it as an operator does, with SIGTERM; its exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(_PATIENCE_S)
        self.process = None
        return code
