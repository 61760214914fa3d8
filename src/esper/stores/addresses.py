"""Addresses of stores: without secrets where they are kept or shown, with them where they are used.

A password comes from the URL, from ``$ESPER_STORE_PASSWORD``, or from a file of logins in the form
of ``.netrc`` (``machine HOST login USER password PASSWORD``), which only its owner may read:
``$ESPER_CREDENTIALS``, or ``~/.config/esper/credentials``.
"""

import os
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from esper.contracts.errors import ConfigError

_WITH_LOGIN = ("redis", "rediss", "unix", "http", "https")
_SHOWN = frozenset(
    ("db", "socket_timeout", "socket_connect_timeout", "protocol", "health_check_interval",
     "max_connections", "ssl_cert_reqs", "ssl_ca_certs", "client_name", "key")
)  # fmt: skip
_KNOWN: dict[str, str] = {}


def without_secrets(url: str) -> str:
    """URL of a store without its password and the parameters that may be secret.

    Example:
        >>> without_secrets("redis://me:secret@host:6379/0?db=1&password=x")
        'redis://me@host:6379/0?db=1'
    """
    return _changed(url, "", {})


def shown(url: str) -> str:
    """URL of a store with the secrets in it masked.

    Example:
        >>> shown("redis://me:secret@host:6379/0?password=x")
        'redis://me:***@host:6379/0?password=***'
    """
    return _changed(url, ":***", {"secret": "***"})


def remember(url: str) -> str:
    """`without_secrets`; this process uses the secrets wherever it opens that address."""
    stripped = without_secrets(url)
    if stripped != url:
        _KNOWN[stripped] = url
    return stripped


def with_secrets(url: str) -> str:
    """URL of a store with the password that belongs to it, if there is one.

    Raises:
        ConfigError: if the file of logins is damaged, or others may read it.
    """
    url = _KNOWN.get(url, url)
    scheme = url.partition(":")[0]
    try:
        parts = urlsplit(url)
        if scheme not in _WITH_LOGIN or parts.password or "password=" in parts.query:
            return url
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its opener says what is wrong
        return url
    user, password = parts.username or "", os.environ.get("ESPER_STORE_PASSWORD", "")
    if not password:
        known, password = _login(host, port)
        user = user or known
    if not password:
        return url
    place = parts.netloc.rpartition("@")[2]
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@"
    return _written(parts, login + place, parts.query)


def _login(host: str, port: int | None) -> tuple[str, str]:
    named = os.environ.get("ESPER_CREDENTIALS")
    path = Path(named) if named else Path("~/.config/esper/credentials").expanduser()
    if not path.is_file():
        return "", ""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} holds passwords and others may read it; run: chmod 600 {path}")
    try:
        logins = netrc(path).hosts
    except (NetrcParseError, OSError, UnicodeDecodeError) as error:
        where = f", line {error.lineno}" if isinstance(error, NetrcParseError) else ""
        raise ConfigError(
            f"{path}{where} cannot be read; write lines: machine HOST login USER password PASSWORD"
        ) from None
    user, _, password = logins.get(f"{host}:{port}") or logins.get(host) or ("", "", "")
    return "" if user == "default" else user, password or ""


def _changed(url: str, password: str, masks: dict[str, str]) -> str:
    if "://" not in url or url.startswith("sqlite:"):  # the path of a file, whatever is in it
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # not one that could be opened
        return f"{url.partition('://')[0]}://***"
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    user = name + (password if colon else "")
    query = [
        (key, value if key in _SHOWN else masks["secret"])
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
        if key in _SHOWN or masks
    ]
    if at and not user:
        at = ""
    if not parts.query and (user, at) == parts.netloc.rpartition("@")[:2]:
        return url
    return _written(parts, f"{user}{at}{host}", urlencode(query, safe="*/:"))


def _written(parts: SplitResult, place: str, query: str) -> str:
    # Not urlunsplit, which takes the slashes of unix:///path for superfluous.
    return f"{parts.scheme}://{place}{parts.path}{'?' if query else ''}{query}"
