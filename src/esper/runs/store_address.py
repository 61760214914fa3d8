"""Addresses of stores: checked before use, written so that they hold anywhere, shown safely."""

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.stores import open_store

SQLITE = "sqlite:///"


def check_store(url: str, scope: str) -> str:
    """Check before a run starts that its log can be kept in a store.

    Args:
        url: As ``open_store`` takes it; ``""`` for the run's own folder.
        scope: Scope of the history that will be read there.

    Returns:
        The URL, its path made absolute: a run is inspected and resumed from any folder.

    Raises:
        ConfigError: if it names no store, or one that forgets.
        StoreError: if the store cannot be opened, written or read.
    """
    url = absolute(url)
    if not url:
        return url
    with open_store(url) as store:
        if not store.durable:
            raise ConfigError(
                f"store {url!r} forgets everything when the command ends; leave --store out to "
                "keep the log in the run's folder"
            )
        for _ in store.read(scope=scope):
            pass  # a damaged page shows now, not after the control has been trained
    return url


def absolute(url: str) -> str:
    """URL of a store with its path made absolute, so that it holds in every folder."""
    name = url.removeprefix(SQLITE)
    if name == url or not name.strip("/") or name.startswith((":", "/")):
        return url
    return f"{SQLITE}{Path(name).expanduser().resolve()}"


def without_password(url: str) -> str:
    """URL of a store with the password masked.

    Example:
        >>> without_password("redis://me:secret@host:6379/0")
        'redis://me:***@host:6379/0'
    """
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}:***@{host}"
    return urlunsplit(parts._replace(netloc=netloc))


def read(url: str, scope: str | None) -> list[Event]:
    """Read all events of a store, or of one scope.

    Raises:
        ConfigError: if ``url`` names no store.
        StoreError: if it cannot be read; a file that is not there is not made.
    """
    if Path(url).is_file():
        url = f"{SQLITE}{Path(url).resolve()}"
    place = url.removeprefix(SQLITE)
    if place != url and not place.startswith(":") and not Path(place).is_file():
        raise StoreError(f"there is no file {place}; give the store that the runs wrote to")
    with open_store(url) as store:
        return [event for _, event in store.read(scope=scope)]
