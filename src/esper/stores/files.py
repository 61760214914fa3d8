"""Files that are there whole or not at all, also after a loss of power."""

import os
from collections.abc import Mapping
from errno import EINVAL
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, have it on the disk, and put it in its place.

    Raises:
        OSError: if it cannot be written; one that was there before is still there.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files of one folder as `write_whole`; all are on the disk before one is in its place.

    Where a link stands, the file that it leads to is written.

    Raises:
        OSError: if one cannot be written, which it names; those that were there before still are.
    """
    files = {p.resolve() if p.is_symlink() else p: content for p, content in files.items()}
    for path in files:
        if path.exists() and not path.is_file():
            raise OSError(EINVAL, "it is no regular file; give another place", str(path))
    try:
        for path, content in files.items():
            _write_beside(path, content)
        for path in files:
            _beside(path).replace(path)
    except OSError:
        for path in files:
            _beside(path).unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        _sync(folder)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _write_beside(path: Path, content: bytes) -> None:
    try:
        with _beside(path).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:  # as of a full disk
            error.filename = str(path)
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
