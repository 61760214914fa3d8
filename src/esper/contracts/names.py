"""Names of scopes, runs, layers and blueprints: text that every store can hold."""

from typing import TypeGuard

from esper.contracts.errors import ConfigError


def is_name(value: object) -> TypeGuard[str]:
    r"""True for text without lone surrogates, as ``os.listdir`` gives for names in Latin-1.

    Example:
        >>> is_name("fc1"), is_name("größe"), is_name("gr\udcf6sse"), is_name(1)
        (True, True, False, False)
    """
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def require_name(what: str, value: object) -> None:
    """Refuse what is no name.

    Raises:
        ConfigError: naming the argument and its value.
    """
    if not is_name(value):
        raise ConfigError(f"{what} is {value!r}; it must be text that can be written as UTF-8")
