"""Patterns of the dotted names of modules: which are meant by those that the user writes."""

import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence

from esper.contracts.errors import ConfigError


def matches(wanted: str, name: str) -> bool:
    """True if a dotted name is the one that is wanted, or fits a pattern.

    In a pattern ``*`` stands for one part of a name or a piece of it, ``**`` for any number of
    parts, a leading ``*.`` for any beginning.
    """
    return wanted == name or ("*" in wanted and _pattern(wanted).fullmatch(name) is not None)


def matching(names: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    """Names that are meant, each once; one that is no pattern is meant if it is not there too.

    Raises:
        ConfigError: if a pattern matches nothing, or one is no text.
    """
    found: dict[str, None] = {}
    for text in wanted if isinstance(wanted, Iterable) else [wanted]:
        if not isinstance(text, str):
            raise ConfigError(
                f"layers has {reprlib.repr(text)}; give dotted names as text, as "
                "model.named_modules() has them: layers=['0', 'encoder.fc']"
            )
        fitting = [name for name in names if matches(text, name)] if "*" in text else [text]
        if not fitting:
            raise ConfigError(
                f"layers has {text!r}, which matches no module; '*' stands for one part of a "
                "dotted name, a leading '*.' for any beginning. Names: "
                f"{', '.join(names[:8]) or 'none'}{', ...' if len(names) > 8 else ''}"
            )
        found |= dict.fromkeys(fitting)
    return iter(found)


def _pattern(wanted: str) -> re.Pattern[str]:
    anywhere = wanted.startswith("*.")
    body = re.escape(wanted.removeprefix("*.") if anywhere else wanted)
    body = body.replace(r"\*\*", ".*").replace(r"\*", "[^.]*")
    return re.compile(rf"(?:.*\.)?{body}" if anywhere else body)
