"""The notebook of the examples runs from top to bottom, and shows what it is there to show."""

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.trains,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:(zmq|jupyter_client|tornado|nbclient).*"
    ),
]


def shown(cell: Any) -> dict[str, Any]:
    """What a cell's last line shows, by its kind."""
    return next(dict(out["data"]) for out in cell["outputs"] if "data" in out)


def test_the_notebook_runs_and_shows_tables_and_a_picture(tmp_path: Path) -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells)  # they would grow stale
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    told = [out for cell in code for out in cell["outputs"] if out["output_type"] == "stream"]
    assert not told, told
    _, plan, report, engine, picture, bandit, plain = code
    for cell in (plan, report):
        assert shown(cell)["text/html"].startswith("<pre>")
    assert "parameters grown" in shown(engine)["text/html"]
    assert shown(bandit)["text/html"].count("<tr>") == 5
    png = base64.b64decode(shown(picture)["image/png"])
    assert png.startswith(b"\x89PNG")
    assert png == (tmp_path / "run.png").read_bytes()
    assert "accuracy" in shown(plain)["text/plain"]
