"""Shared look of all pictures: colours, figure, bare axes, saving, and the check beforehand."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from esper.contracts.errors import ConfigError
from esper.stores.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

# Okabe & Ito (2008), Color universal design: told apart with every common colour blindness.
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY = "#e69f00", "#56b4e9"
INK, GREY, PALE = "#222222", "#6b6b6b", "#b5b5b5"
DASHED = (0, (4, 3))


def check(path: Path | None, what: str = "picture") -> None:
    """Check before any work that a picture can be drawn at ``path``, if one is wanted.

    Args:
        path: Where it goes.
        what: Name of what has the picture in it, for messages.

    Raises:
        ConfigError: if matplotlib is not installed, the suffix is another than .png, .svg, .pdf,
            or there is no such folder.
    """
    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture is .png, .svg or .pdf, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent} for the {what}; make it first")
    if find_spec("matplotlib") is None:
        raise ConfigError('a picture needs matplotlib: pip install "esper-morph[plot]"')


def figure(path: Path, width: float, height: float) -> "Figure":
    """Make a figure of this size in inches; without pyplot, so nothing global changes.

    Raises:
        ConfigError: as `check` does.
    """
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (an extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    made = Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: "Figure", path: Path) -> None:
    """Save without a date, so that two pictures of one thing are the same file."""
    suffix = path.suffix.lower()
    stamp = {".svg": "Date", ".pdf": "CreationDate"}.get(suffix)
    content = BytesIO()
    kind = suffix.removeprefix(".")
    made.savefig(content, format=kind, metadata={stamp: None} if stamp else None)
    write_whole(path, content.getvalue())


def title(made: "Figure", text: str) -> None:
    """Write the title of a figure, bold, at the left."""
    made.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)


def log_scale(axes: "Axes", ticks: tuple[float, ...] = (1, 2, 5)) -> None:
    """Make the y axis logarithmic, with plain numbers at ``ticks`` times the powers of ten."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator  # noqa: PLC0415

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=ticks))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


def bare(axes: "Axes") -> None:
    """Leave out the frame at the top and the right, and draw the rest in grey."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PALE)
    axes.tick_params(colors=INK, color=PALE, which="both")
