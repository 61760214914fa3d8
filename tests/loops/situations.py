"""Situations: loops that people write, and what Esper does in each; the rows of docs/loops.md."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from tests.loops.trial import Trial

Loop = Callable[[Trial], object]

THEMES = (
    "batches",
    "holdouts",
    "models",
    "modules",
    "state",
    "layouts",
    "optimizers",
    "schedulers",
    "loops",
    "runs",
    "processes",
)
"""Modules of this folder that have situations, in the order of the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One row of docs/loops.md.

    Attributes:
        theme: Module that it stands in.
        name: Its function's.
        line: What the loop does; the first line of the function's docstring.
        loop: Trains, by means of a `Trial`.
        refusal: The sentence with which `esper.wrap` or `esper.Tamiyo` refuses it; empty if it
            works.
        twice: Whether the trial is compared with a control.
    """

    theme: str
    name: str
    line: str
    loop: Loop
    refusal: str = ""
    twice: bool = True

    @property
    def row(self) -> str:
        """As in the table of its theme."""
        outcome = f"refused: {self.refusal}" if self.refusal else "works"
        line, outcome = (part.replace("|", "\\|") for part in (self.line, outcome))
        return f"| `{self.name}` | {line} | {outcome} |"


_FOUND: list[Situation] = []


def works(loop: Loop) -> Loop:
    """Decorate a loop in which a kernel grows."""
    return _add(loop)


def holds(loop: Loop) -> Loop:
    """Decorate a loop that works, and compares what it wants itself."""
    return _add(loop, twice=False)


def refused(sentence: str) -> Callable[[Loop], Loop]:
    """Decorate a loop that is refused before the first batch."""
    return lambda loop: _add(loop, refusal=sentence)


def _add(loop: Loop, *, refusal: str = "", twice: bool = True) -> Loop:
    line = (loop.__doc__ or "").strip().splitlines()[0].removesuffix(".")
    _FOUND.append(
        Situation(
            theme=loop.__module__.rpartition(".")[2],
            name=loop.__name__.replace("_", "-"),
            line=line,
            loop=loop,
            refusal=refusal,
            twice=twice,
        )
    )
    return loop


def situations() -> list[Situation]:
    """All of them, by theme, in the order in which they stand there."""
    for theme in THEMES:
        import_module(f"tests.loops.{theme}")
    return sorted(_FOUND, key=lambda found: THEMES.index(found.theme))
