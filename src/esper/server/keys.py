"""API keys: who may read and who may write which project. A file holds their hashes alone."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import Final, Literal, final, get_args

from esper.contracts.errors import ConfigError

Right = Literal["read", "write"]
RIGHTS: Final = get_args(Right)
_HEX: Final = frozenset("0123456789abcdef")
ANY: Final = "*"
"""Project of a key for all projects."""


@final
@dataclass(frozen=True, slots=True)
class Key:
    """One key, as a line of the file: ``NAME RIGHT PROJECT HASH``.

    Attributes:
        name: Whose it is, for logs.
        right: ``"read"``, or ``"write"``, which reads too.
        project: The project, or ``*``.
        digest: SHA-256 of the key, in hexadecimal digits; keys are random, so that no slower hash
            is needed.
    """

    name: str
    right: Right
    project: str
    digest: str

    def allows(self, project: str, right: Right) -> bool:
        """Test whether it may do this to a project."""
        return self.project in {ANY, project} and (right == "read" or self.right == "write")


@final
class Keys:
    """All keys of a service; without any, everybody may do everything.

    The file is read again when it has changed, so that keys are revoked without a restart.

    Args:
        path: The file; ``None`` for none.

    Raises:
        ConfigError: if a line is no key.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._keys: Sequence[Key] = ()
        self._refresh()

    @property
    def asked_for(self) -> bool:
        """True if requests need a key."""
        return self._path is not None

    def find(self, secret: str) -> Key | None:
        """The key; its hash is compared with all others in constant time."""
        self._refresh()
        digest, found = digest_of(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            now = self._path.stat()
            stamp = now.st_mtime_ns, now.st_size
            if stamp == self._read_at:
                return
            self._keys = read_keys(self._path)
        except OSError as error:
            raise ConfigError(f"the keys cannot be read: {error}; make some: esper key") from error
        self._read_at = stamp


def digest_of(secret: str) -> str:
    """Hash of a key."""
    return sha256(secret.encode(errors="surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """Keys of a file.

    Raises:
        ConfigError: if a line is no key; the line is not shown.
        OSError: if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no file of keys, or damaged: {error.reason}") from error
    return _keys_in(text, str(path))


def _keys_in(text: str, where: str) -> list[Key]:
    return [
        _key_of(line.split(), f"{where}, line {number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]


def add_key(path: Path, name: str, right: str, project: str) -> str:
    """Make a key, add its hash to a file that only its owner may read, and return it.

    Raises:
        ConfigError: if a name is taken, empty or has spaces, or there is no such right.
    """
    if right not in RIGHTS:
        raise ConfigError(f"the right is {right!r}; it must be one of: {', '.join(RIGHTS)}")
    known = read_keys(path) if path.exists() else []
    if name in {key.name for key in known}:
        raise ConfigError(f"{path} has a key of {name!r}; take its line out, or another name")
    secret = token_urlsafe(32)
    line = f"{name} {right} {project} {digest_of(secret)}"
    made = _keys_in(line, f"key {name!r}")
    if [(key.name, key.right, key.project) for key in made] != [(name, right, project)]:
        raise ConfigError(f"{name!r} cannot name a key: it begins with #, which begins a remark")
    path.touch(mode=0o600)
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        before = file.read()
        ended = not before or before.endswith("\n")  # an editor may have left it without an end
        file.write(f"{line}\n" if ended else f"\n{line}\n")
    return secret


def _key_of(words: Sequence[str], where: str) -> Key:
    match words:
        case [str(name), "read" | "write" as right, str(project), str(digest)] if (
            name and project and len(digest) == 64 and set(digest) <= _HEX
        ):
            return Key(name, right, project, digest)
    raise ConfigError(f"{where} is no key; write: NAME read|write PROJECT|* HASH")
