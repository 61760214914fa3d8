"""Secrets of stores: shown nowhere, kept nowhere, found where they belong."""

from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError
from esper.stores import addresses, open_store
from esper.stores.addresses import remember, shown, with_secrets, without_secrets


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(addresses, "_KNOWN", {})
    monkeypatch.delenv("ESPER_STORE_PASSWORD", raising=False)
    monkeypatch.setenv("ESPER_CREDENTIALS", str(tmp_path / "credentials"))


@pytest.mark.parametrize(
    ("url", "stripped", "masked"),
    [
        ("", "", ""),
        ("memory:", "memory:", "memory:"),
        ("sqlite:////var/h.db", "sqlite:////var/h.db", "sqlite:////var/h.db"),
        *[(f"sqlite:///{name}",) * 3 for name in ("what?.db", "a#b?db=1.db", "me:it@home/h.db")],
        ("redis://h/0", "redis://h/0", "redis://h/0"),
        ("redis://:pw@h/0", "redis://h/0", "redis://:***@h/0"),
        ("redis://me:pw@h:1/0", "redis://me@h:1/0", "redis://me:***@h:1/0"),
        ("redis://h/0?password=pw", "redis://h/0", "redis://h/0?password=***"),
        ("redis://h?db=2&token=pw", "redis://h?db=2", "redis://h?db=2&token=***"),
        (
            "unix:///s.sock?db=0&password=pw",
            "unix:///s.sock?db=0",
            "unix:///s.sock?db=0&password=***",
        ),
        ("redis://[::1", "redis://***", "redis://***"),
    ],
)
def test_secrets_are_stripped_or_masked(url: str, stripped: str, masked: str) -> None:
    assert without_secrets(url) == stripped
    assert shown(url) == masked
    assert "pw" not in stripped + masked


def test_what_was_given_once_is_used_in_this_process() -> None:
    assert remember("redis://me:new@h/0") == "redis://me@h/0"
    assert with_secrets("redis://me@h/0") == "redis://me:new@h/0"
    assert with_secrets("redis://me@other/0") == "redis://me@other/0"


def test_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_STORE_PASSWORD", "a/b@c")
    assert with_secrets("redis://me@h:1/0") == "redis://me:a%2Fb%40c@h:1/0"
    assert with_secrets("redis://h") == "redis://:a%2Fb%40c@h"
    assert with_secrets("redis://:own@h") == "redis://:own@h"
    assert with_secrets("sqlite:///h.db") == "sqlite:///h.db"


def test_a_password_comes_from_a_file_that_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("machine h:1 login me password one\nmachine h login default password two\n")
    path.chmod(0o600)
    assert with_secrets("redis://h:1/0") == "redis://me:one@h:1/0"
    assert with_secrets("redis://h/0") == "redis://:two@h/0"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="run: chmod 600"):
        with_secrets("redis://h/0")
    path.write_text("machine h login me password\n secret oops")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"cannot be read; write lines: machine HOST") as caught:
        with_secrets("redis://h/0")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://[::1", "redis://h?foo=bar", "redis://h\x1b[2J/0", "sqlite:///a\0b", "a\nb://"]
)
def test_an_address_that_cannot_be_is_refused_in_one_sentence(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "\x1b" not in str(caught.value)
