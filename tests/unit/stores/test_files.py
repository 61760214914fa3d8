"""Files that are there whole: links are followed, and what is no file stays what it is."""

import os
from pathlib import Path

import pytest

from esper.stores.files import write_together, write_whole


def test_the_file_behind_a_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    target, link = tmp_path / "backup" / "history", tmp_path / "latest"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert [one.name for one in target.parent.iterdir()] == ["history"]


def test_a_pipe_stays_one_and_nothing_beside_it_is_written(tmp_path: Path) -> None:
    pipe, other = tmp_path / "pipe", tmp_path / "other"
    os.mkfifo(pipe)
    other.write_bytes(b"old")
    with pytest.raises(OSError, match=r"no regular file; give another place.*pipe"):
        write_together({other: b"new", pipe: b"new"})
    assert pipe.is_fifo()
    assert other.read_bytes() == b"old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["other", "pipe"]
