"""Tables for notebooks: small, escaped, without styles of their own beyond alignment."""

from collections.abc import Callable, Iterable, Sequence
from html import escape

from esper.records.layer import LayerRecord
from esper.records.seed import SeedRecord

_MOST_ROWS = 60


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with a caption; numbers stand at the right, and the first rows are shown.

    Example:
        >>> html_table("a < b", ["n"], [[1]])
        '<table><caption style="text-align:left"><b>a &lt; b</b></caption><tr><th>n</th></tr>\
<tr><td style="text-align:right">1</td></tr></table>'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines.append(
            f'<tr><td colspan="{len(columns)}">and {len(rows) - _MOST_ROWS:,} more</td></tr>'
        )
    caption = f'<caption style="text-align:left"><b>{escape(title)}</b></caption>'
    return f"<table>{caption}<tr>{head}</tr>{''.join(lines)}</table>"


def seeds_table(
    title: str,
    layers: Iterable[LayerRecord | None],
    more: str,
    tell: Callable[[SeedRecord], object],
    *,
    arms: bool = False,
) -> str:
    """Table of seeds and what is known of them.

    Args:
        title: Caption.
        layers: Records of layers, as of one moment; seeds that nothing is known of are left out.
        more: Name of one more column.
        tell: Its content.
        arms: The seeds are arms of a bandit, without layers.
    """
    columns = ["chosen", "outcomes", "mean reward", "no outcome yet", more]
    where = ["arm"] if arms else ["layer", "seed", "blueprint"]
    rows = [
        [
            *([one.seed_idx] if arms else [one.layer_name, one.seed_idx, one.blueprint or "-"]),
            one.total_activations,
            one.outcomes,
            f"{one.mean:+.4g}" if one.count else "-",
            one.pending,
            tell(one),
        ]
        for layer in layers
        for one in (layer.seeds.values() if layer else ())
    ]
    return html_table(title, [*where, *columns], rows)


def _cell(value: object) -> str:
    number = isinstance(value, int | float) or (isinstance(value, str) and value[:1] in "+-")
    place = ' style="text-align:right"' if number else ""
    return f"<td{place}>{escape(str(value))}</td>"
