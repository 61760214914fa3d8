"""Write the tables of ``docs/loops.md`` from the situations: ``python -m tests.loops.page``."""

from pathlib import Path

from tests.loops.situations import THEMES, situations

PAGE = Path(__file__).resolve().parents[2] / "docs" / "loops.md"
_MARK = "<!-- The tables: written by python -m tests.loops.page -->\n"


def written() -> str:
    """The page with the tables that the situations make; what stands above them is kept."""
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition(_MARK)
    return head + mark + "".join(map(_table, THEMES))


def _table(theme: str) -> str:
    rows = [situation.row for situation in situations() if situation.theme == theme]
    head = ["| situation | the loop | outcome |", "|---|---|---|"]
    return "\n".join(["", f"## {theme.capitalize()}", "", *head, *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
