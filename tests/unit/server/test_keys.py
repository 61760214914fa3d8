"""The file of keys: what is added can be read, whatever an editor did before."""

from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError
from esper.server.keys import add_key, digest_of, read_keys


def test_a_key_after_a_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "alice", "write", "*")
    path.write_text(path.read_text().rstrip("\n"))
    secret = add_key(path, "bob", "read", "main")
    assert [(key.name, key.right) for key in read_keys(path)] == [
        ("alice", "write"),
        ("bob", "read"),
    ]
    assert read_keys(path)[1].digest == digest_of(secret)
    assert path.read_text().count("\n") == 2


NAMES = ["", " ", "two words", "tab\tbed", "line\nbreak", "no\u00a0break", "\u2028", "#remark"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_not_be_read_back_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "keys"
    add_key(path, "alice", "write", "*")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"is no key|cannot name a key"):
        add_key(path, name, "write", "*")
    assert path.read_bytes() == before
