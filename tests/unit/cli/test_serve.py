"""``esper serve`` and ``esper key``: what is refused before anything is served."""

from pathlib import Path

import pytest

from tests.unit.cli.test_bad_input import esper, refused

STORE = "memory:"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((STORE, "--host", "0.0.0.0"), "without keys everybody may write"),
        ((STORE, "--host", "example.org"), "without keys everybody may write"),
        ((STORE, "--keys", "none"), "the keys cannot be read"),
        ((STORE, "--certificate", "none.pem"), "there is no file none.pem"),
        ((STORE, "--strategy", "thomson"), "Did you mean 'thompson'?"),
        (("a-b=memory:",), "letters, digits and _ only"),
        ((STORE, STORE), "a project is named twice"),
        (("history.db",), "did you mean 'sqlite:///history.db'?"),
        ((STORE, "--wait", "inf"), "--wait is inf; it must be a number"),
    ],
)
def test_serve_refuses(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("serve", *arguments)


def test_keys_are_made_once_and_kept_as_hashes() -> None:
    first, second = (
        esper("key", name, "--keys", "keys", code=0).stdout.strip() for name in ("a", "b")
    )
    assert first != second
    assert [line.split()[:3] for line in Path("keys").read_text().splitlines()] == [
        ["a", "write", "*"],
        ["b", "write", "*"],
    ]
    assert "has a key of 'a'" in refused("key", "a", "--keys", "keys")
    assert "must be one of: read, write" in refused("key", "c", "--keys", "keys", "--right", "all")
    assert "is no key" in refused("key", "c d", "--keys", "keys")
    Path("keys").write_text("a write\n")
    assert "keys, line 1 is no key" in refused("serve", STORE, "--keys", "keys")
