"""Top-level error handler: one line on stderr and an exit code, a traceback on request."""

import errno
import logging
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

import typer
from typer.core import TyperGroup
from typing_extensions import override

from esper.contracts.errors import ConfigError, EsperError

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


@final
class ErrorHandler(TyperGroup):
    """Group of commands whose expected errors become one line instead of a traceback."""

    @override
    def invoke(self, ctx: Any) -> Any:
        _replace_unknown_characters()
        logging.lastResort = _Notes(logging.WARNING)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except EsperError as error:
            if ctx.params.get("debug"):
                raise
            say_error(str(error))
            raise typer.Exit(BAD_INPUT if isinstance(error, ConfigError) else FAILED) from None
        except OSError as error:
            # A closed pipe is not an error (`esper ... | head`); typer knows what to do with it.
            if ctx.params.get("debug") or error.errno == errno.EPIPE or error.strerror is None:
                raise
            say_error(": ".join(str(part) for part in (error.filename, error.strerror) if part))
            raise typer.Exit(FAILED) from None


def say_error(message: str) -> None:
    """Print one line on stderr, red where there are colours."""
    from rich.text import Text  # noqa: PLC0415 (not needed for --help)

    text = Text.assemble(("esper: ", "bold red"), (message, "red"))
    escaping_console(stderr=True, soft_wrap=True).print(text)


def escaping_console(**settings: Any) -> "Console":
    """Console that shows control characters in what it prints as escapes.

    Names come from stores that others write to; raw, they could rule the terminal.
    """
    from rich.console import Console  # noqa: PLC0415 (not needed for --help)
    from rich.segment import Segment  # noqa: PLC0415

    @final
    class Escaping(Console):
        @override
        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                if segment.control or not _CONTROL.search(segment.text):
                    yield segment
                else:
                    yield Segment(_CONTROL.sub(_escape, segment.text), segment.style)

    return Escaping(**settings)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


@final
class _Notes(logging.Handler):
    """Handler that prints warnings of a command on stderr."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        escaping_console(stderr=True, soft_wrap=True).print(record.getMessage(), markup=False)


def _replace_unknown_characters() -> None:
    # In a terminal that knows only ASCII, ± becomes ? instead of an error.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
