"""Schema versions of saved states: one check, one message."""

from collections.abc import Mapping

from esper.contracts.errors import ConfigError


def require_schema(state: object, what: str, known: int) -> None:
    """Refuse a state that this version cannot read.

    Args:
        state: A saved state, with its version under ``"schema"``.
        what: Whose state it is, for the message.
        known: The version that can be read.

    Raises:
        ConfigError: if the state is of another version or none; the message says the way out.

    Example:
        >>> require_schema({"schema": 2}, "tracker", 1)
        Traceback (most recent call last):
        ...
        esper.contracts.errors.ConfigError: the state of a tracker has schema 2, this version \
reads 1; upgrade with: pip install -U esper-morph
    """
    if not isinstance(state, Mapping):
        raise ConfigError(f"the state of a {what} is {state!r}; give what state_dict() gave")
    found = state.get("schema")
    if found == known and not isinstance(found, bool):
        return
    if isinstance(found, int) and found > known:
        way_out = "upgrade with: pip install -U esper-morph"
    else:
        way_out = "it is damaged, or older; load it with the version that wrote it, or begin anew"
    shown = "no schema" if found is None else f"schema {found!r}"
    raise ConfigError(f"the state of a {what} has {shown}, this version reads {known}; {way_out}")
