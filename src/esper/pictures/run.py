"""Picture of a run of ``esper train``, beside the control and the static network."""

from collections.abc import Sequence
from pathlib import Path

from esper.contracts.events import Event
from esper.drawing.run_log import Shown
from esper.drawing.run_log import draw as draw_log
from esper.runs.run_reader import Run


def draw(run: Run, events: Sequence[Event], path: Path) -> None:
    """Draw a run, finished or not, into ``path``; its suffix says how: .png, .svg or .pdf.

    Raises:
        ConfigError: as ``drawing.style.check``.
    """
    parts = {"control": run.control, "static": run.static, "grown": run.grown}
    shown = Shown(
        title=f"{run.spec['task']}, seed {run.spec['seed']}, {run.strategy}",
        subtitle=_subtitle(run, events),
        seeds=run.slots,
        epochs=run.spec["epochs"],
        losses={name: part.get("losses", ()) for name, part in parts.items()},
        unit="nats",
    )
    draw_log(shown, events, path)


def _subtitle(run: Run, events: Sequence[Event]) -> str:
    if run.result is None:
        done = sum(event.kind == "epoch" for event in events)
        return f"after {done} of {run.spec['epochs']} epochs"
    return "test accuracy (parameters): " + ",  ".join(
        f"{name} {scores['test_accuracy'] * 100:.1f} % ({scores['parameters']:,})"
        for name in ("grown", "static", "control")
        if (scores := run.result.get(name))
    )
