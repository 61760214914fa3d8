"""Files that are there whole or not at all, also after a loss of power."""

import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, have it on the disk, and put it in its place.

    Raises:
        OSError: if it cannot be written; one that was there before is still there.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files of one folder as `write_whole`; all are on the disk before one is in its place.

    Raises:
        OSError: if one cannot be written, which it names; those that were there before still are.
    """
    beside = {path: path.with_name(f"{path.name}.new") for path in files}
    try:
        for path, content in files.items():
            _write(beside[path], content)
        for path, new in beside.items():
            new.replace(path)
    except OSError:
        for new in beside.values():
            new.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        _sync(folder)


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # of a write, it names no file
        error.filename = error.filename or str(path)
        raise


def _sync(path: Path) -> None:
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:  # a system that opens no folders
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
