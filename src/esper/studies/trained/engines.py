"""Engines of the effect study: in this process, over processes, over a Ray cluster.

A run is a function of its spec and of the history that it inherits, which travel as values. So no
engine needs a shared file system, and all give the same results.
"""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from typing import Any, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, EsperError, unknown_name
from esper.studies.trained.cells import EffectRun
from esper.studies.trained.training import Trained, train_run
from esper.studies.workers import worker_pool

Ended = tuple[EffectRun, Trained, bytes | None]
"""A run, its result, and the history that it leaves."""

ENGINES = ("processes", "ray")
_PATIENCE_S = 10.0


class Engine(ABC):
    """Trains runs.

    Attributes:
        slots: Number of runs that it can train at once, >= 1.
    """

    slots: int = 1

    @abstractmethod
    def start(self, run: EffectRun, history: bytes | None) -> None:
        """Start a run; at most ``slots`` at once."""

    @abstractmethod
    def ended(self) -> Ended:
        """Wait until one of the runs has ended.

        Raises:
            EsperError: if what trained it was killed, or its machine is gone.
            Exception: whatever its training raised, with a note that names the run.
        """

    @abstractmethod
    def close(self) -> None:
        """End what is still under way, without results."""


def engine(name: str, jobs: int | None, cores: int) -> Engine:
    """Engine of a name.

    Args:
        name: One of ``ENGINES``.
        jobs: Number of runs at once; by default ``cores``, or as many as the cluster has.
        cores: Cores of this machine.

    Raises:
        ConfigError: if there is no such engine, it is not installed, or ``jobs`` is below 1.
    """
    if name not in ENGINES:
        raise ConfigError(unknown_name("engine", name, ENGINES))
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; it must be a whole number >= 1")
    if name == "ray":
        return OverRay(jobs)
    slots = cores if jobs is None else jobs
    return InProcess() if slots == 1 else OverProcesses(slots)


@final
class InProcess(Engine):
    """One run after the other, in this process."""

    def __init__(self) -> None:
        self._next: tuple[EffectRun, bytes | None] | None = None

    @override
    def start(self, run: EffectRun, history: bytes | None) -> None:
        self._next = run, history

    @override
    def ended(self) -> Ended:
        assert self._next is not None
        run, history = self._next
        try:
            return run, *train_run(run, history)
        except Exception as error:
            _name(error, run)
            raise

    @override
    def close(self) -> None:
        self._next = None


@final
class OverProcesses(Engine):
    """Processes of this machine, each with one thread."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pool = worker_pool(slots)
        self._runs: dict[Future[tuple[Trained, bytes | None]], EffectRun] = {}

    @override
    def start(self, run: EffectRun, history: bytes | None) -> None:
        self._runs[self._pool.submit(train_run, run, history)] = run

    @override
    def ended(self) -> Ended:
        first = wait(self._runs, return_when=FIRST_COMPLETED).done.pop()
        run = self._runs.pop(first)
        try:
            return run, *first.result()
        except BrokenProcessPool as error:
            raise _lost(run, error) from error
        except Exception as error:
            _name(error, run)
            raise

    @override
    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@final
class OverRay(Engine):
    """A Ray cluster: that of ``RAY_ADDRESS``, or a new one on this machine; one core for a run.

    A run whose process is killed, or whose machine is gone, is trained again, up to three times.

    Raises:
        ConfigError: if ray is not installed, or no cluster answers.
    """

    def __init__(self, slots: int | None) -> None:
        if find_spec("ray") is None:
            raise ConfigError(
                'engine ray is not installed: pip install "esper-morph[ray]", on every machine of '
                "the cluster; or leave --engine out, and processes of this machine are used"
            )
        import ray  # noqa: PLC0415 (an extra)
        import ray.exceptions  # noqa: PLC0415

        self._ray: Any = ray
        self._began = not ray.is_initialized()
        if self._began:
            _reach(lambda: ray.init(log_to_driver=False))
        self.slots = slots or max(int(self._ray.cluster_resources().get("CPU", 1)), 1)
        self._train = ray.remote(num_cpus=1, max_retries=3)(train_run)
        self._runs: dict[Any, EffectRun] = {}

    @override
    def start(self, run: EffectRun, history: bytes | None) -> None:
        self._runs[self._train.remote(run, history)] = run

    @override
    def ended(self) -> Ended:
        first = self._ray.wait(list(self._runs), num_returns=1)[0][0]
        run = self._runs.pop(first)
        try:
            return run, *self._ray.get(first)
        except self._ray.exceptions.RayTaskError as error:
            _name(error.cause, run)
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise _lost(run, error) from error

    @override
    def close(self) -> None:
        for handle in self._runs:
            self._ray.cancel(handle, force=True)
        if self._began:
            self._ray.shutdown()


def _reach(connect: Callable[[], object]) -> None:
    """Connect to a cluster; its address is asked first, as Ray tries one for many minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()
        connect()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at RAY_ADDRESS={address!r} ({error}); start one with "
            "'ray start --head', correct the address, or unset it: then Ray uses this machine"
        ) from error


def _lost(run: EffectRun, error: Exception) -> EsperError:
    return EsperError(
        f"run {run.name} was lost: its process was killed or its machine is gone "
        f"({type(error).__name__}). Give the same command again: runs that ended are kept; "
        "with fewer --jobs if memory was short"
    )


def _name(error: Exception, run: EffectRun) -> None:
    error.add_note(f"in run {run.name} of the effect study")
