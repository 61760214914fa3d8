"""Lock of a run: one process at a time trains it, and the others can see that.

The lock belongs to the process, not to the file: whatever ends the process, even a kill, frees it.
Where the system has no such locks (Windows), nothing is locked and no run counts as under way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from esper.contracts.errors import ConfigError
from esper.runs.run_folder import RunFolder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = "lock"


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of a run while it is trained.

    Raises:
        ConfigError: if another process holds it.
    """
    if fcntl is None:
        yield
        return
    with (folder.path / _NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"run {folder.name!r} is being trained by another process; wait until it ends, "
                "or stop it"
            ) from error
        yield


def is_held(folder: RunFolder) -> bool:
    """Test whether a process trains this run now."""
    if fcntl is None or not (folder.path / _NAME).exists():
        return False
    with (folder.path / _NAME).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
