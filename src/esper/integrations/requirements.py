"""Frameworks that must be installed, in versions that work."""

from importlib.metadata import PackageNotFoundError, version

from esper.contracts.errors import ConfigError


def require(package: str, at_least: str, *, extra: str, never: tuple[str, ...] = ()) -> None:
    """Refuse to go on without a package.

    Args:
        package: Its name in the package index.
        at_least: Oldest version that works, as ``"2.6.4"``.
        extra: Extra of esper-morph that installs it.
        never: Newer versions that must not be used.

    Raises:
        ConfigError: if it is missing, older, or one of ``never``; it names the extra.
    """
    way_out = f"install it with: pip install 'esper-morph[{extra}]'"
    try:
        found = version(package)
    except PackageNotFoundError as error:
        raise ConfigError(f"{package} is not installed; {way_out}") from error
    if found in never:
        raise ConfigError(f"{package} {found} is a withdrawn, malicious release; {way_out}")
    if _numbers(found) < _numbers(at_least):
        raise ConfigError(f"{package} is {found}, and must be {at_least} or newer; {way_out}")


def _numbers(text: str) -> tuple[int, ...]:
    """Leading numbers of a version.

    Example:
        >>> _numbers("2.6.4.dev1") >= _numbers("2.6")
        True
    """
    found: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
