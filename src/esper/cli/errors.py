"""Top-level error handler: one line on stderr and an exit code, a traceback on request."""

import errno
import sys
from typing import Any, final

import typer
from typer.core import TyperGroup
from typing_extensions import override

from esper.contracts.errors import ConfigError, EsperError

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


@final
class ErrorHandler(TyperGroup):
    """Group of commands whose expected errors become one line instead of a traceback."""

    @override
    def invoke(self, ctx: Any) -> Any:
        _replace_unknown_characters()
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
    from rich.console import Console  # noqa: PLC0415 (not needed for --help)
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("esper: ", "bold red"), (message, "red")))


def _replace_unknown_characters() -> None:
    # In a terminal that knows only ASCII, ± becomes ? instead of an error.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
