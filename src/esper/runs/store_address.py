"""Addresses of stores: checked before use, written so that they hold anywhere, shown safely."""

from itertools import islice
from pathlib import Path

from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.stores import open_store
from esper.stores.addresses import remember

_TRIED = 10_000
SQLITE = "sqlite:///"


def check_store(url: str, scope: str) -> str:
    """Check before a run starts that its log can be kept in a store, and remember its password.

    Args:
        url: As ``open_store`` takes it; ``""`` for the run's own folder.
        scope: Scope of the history that will be read there.

    Returns:
        The URL without secrets, its path made absolute: a run is inspected and resumed from any
        folder.

    Raises:
        ConfigError: if it names no store, or one that forgets.
        StoreError: if the store cannot be opened, written or read.
    """
    url = remember(absolute(url))
    if not url:
        return url
    with open_store(url) as store:
        if not store.durable:
            raise ConfigError(
                f"store {url!r} forgets everything when the command ends; leave --store out to "
                "keep the log in the run's folder"
            )
        for _ in islice(store.read(scope=scope), _TRIED):
            pass  # a damaged page shows now, not after the control has been trained
    return url


def absolute(url: str) -> str:
    """URL of a store with its path made absolute, so that it holds in every folder."""
    name = url.removeprefix(SQLITE)
    if name == url or not name.strip("/") or name.startswith((":", "/")):
        return url
    return f"{SQLITE}{Path(name).expanduser().resolve()}"


def url_of(store: str) -> str:
    """URL of a store, which may be given as the path of its file."""
    is_file = "://" not in store and Path(store).is_file()
    return f"{SQLITE}{Path(store).resolve()}" if is_file else store


def read(url: str, scope: str | None) -> list[Event]:
    """Read all events of a store, or of one scope.

    Raises:
        ConfigError: if ``url`` names no store.
        StoreError: if it cannot be read; a file that is not there is not made.
    """
    with open_store(url_of(url), read_only=True) as store:
        return [event for _, event in store.read(scope=scope)]
