"""Files that are there whole or not at all, also after a loss of power."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, have it on the disk, and put it in its place.

    Raises:
        OSError: if it cannot be written; one that was there before is still there.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:  # a system that opens no folders
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
