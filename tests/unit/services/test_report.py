"""The report of an epoch as text."""

import re
from dataclasses import replace
from html import unescape

import pandas as pd
import pytest

from esper.contracts.selection import Decision, SelectionReason
from esper.services.tamiyo.report import EpochReport, Step
from tests.unit.services.small_run import CULLED, KEPT, SmallRun, settings

pytestmark = pytest.mark.trains
STEP = Step(
    layer_name="fc1", seed_idx=1, blueprint="glu", old="dormant", new="germinated", why="untried"
)
REPORT = EpochReport(
    epoch=3,
    holdout_loss=0.51236,
    holdout_accuracy=None,
    used=44,
    budget=400,
    steps=(),
    verdicts=(),
    decisions=(),
    reason="warming up until epoch 4",
)


def test_the_first_line_says_where_the_run_stands_and_the_last_why() -> None:
    assert str(REPORT) == (
        "epoch 3: held-out loss 0.5124, 44 of 400 parameters grown\n"
        "  no graft: warming up until epoch 4"
    )


def test_an_accuracy_is_shown_if_it_is_known() -> None:
    text = str(replace(REPORT, holdout_accuracy=0.8754))
    assert text.startswith("epoch 3: held-out loss 0.5124, accuracy 87.5%, 44 of 400 parameters")


def test_every_step_and_the_choice_have_a_line() -> None:
    why = SelectionReason("ucb", 1, 0.4, {1: 0.4}, 1.0, "the best bound, 0.4")
    decision = Decision(
        decision_id="d",
        layer_name="fc1",
        seed_idx=1,
        blueprint="glu",
        epoch=3,
        reason=why,
        random_key=(0, "fc1", 1),
    )
    text = str(replace(REPORT, steps=(STEP, replace(STEP, new="training")), decisions=(decision,)))
    assert text.splitlines()[1:] == [
        "  layer fc1, seed 1 (glu) chosen: untried",
        "  layer fc1, seed 1 (glu) training: untried",
        "  why now: warming up until epoch 4",
    ]


@pytest.fixture(scope="module")
def run() -> SmallRun:
    """A run in which kernels of seeds 0 and 2 are kept, those of 1 and 3 culled."""
    config = settings(max_active=1, budget=2000)
    return SmallRun(config=config, layers=("fc1",), worth=(KEPT, CULLED)).run(15)


@pytest.fixture(scope="module")
def reports(run: SmallRun) -> list[str]:
    return [str(report) for report in run.reports]


def test_the_numbers_are_those_of_the_run(run: SmallRun, reports: list[str]) -> None:
    assert reports[0].splitlines()[1:] == ["  no graft: warming up until epoch 1"]
    for epoch, (report, text) in enumerate(zip(run.reports, reports, strict=True)):
        loss = f"{report.holdout_loss:.4f}"
        head = f"epoch {epoch}: held-out loss {loss}, {report.used} of 2000 parameters grown"
        assert text.splitlines()[0] == head


def test_an_accuracy_is_measured_if_it_was_asked_for() -> None:
    def close(model: object, batch: object) -> object:
        run = SmallRun.loss_fn(model, batch)
        return (run < 5.0).float()

    run = SmallRun(options={"accuracy_fn": close}).run(1)
    assert f", accuracy {run.reports[0].holdout_accuracy:.1%}, " in str(run.reports[0])


def test_a_beginning_says_what_grows_where_and_why_once(reports: list[str]) -> None:
    text = " ".join(next(text for text in reports if "chosen" in text).split())
    (seed,) = set(re.findall(r"(layer fc1, seed \d \(\w+\)) chosen: ", text))
    assert re.search(rf"{re.escape(seed)} chosen: \w+ of \d+ parameters: untried", text)
    assert f"{seed} training: it trains in the shadow of the host" in text
    assert "why now: layer fc1 has had fewest grafts, 0 (0 kept), and 100% of gradient" in text
    assert text.count("untried") == 1


ENDS = {
    True: "kept: worth +0.0500 ± 0.0100 of held-out loss: more than 2 standard errors",
    False: "culled: worth -0.0200 ± 0.0100 of held-out loss: not more than 2 standard errors",
}


def test_an_end_says_what_the_kernel_was_worth(run: SmallRun, reports: list[str]) -> None:
    text = " ".join(" ".join(reports).split())
    grafts = run.facts("graft")
    assert {graft["seed"] for graft in grafts} == {0, 1, 2, 3}
    assert text.count(" worth ") == len(grafts)
    for graft in grafts:
        end = ENDS[graft["seed"] in (0, 2)]
        assert f"layer fc1, seed {graft['seed']} ({graft['blueprint']}) {end}" in text


def test_every_line_fits_eighty_columns(reports: list[str]) -> None:
    assert all(len(line) <= 80 for text in reports for line in text.splitlines())


def test_a_notebook_shows_what_print_does(run: SmallRun) -> None:
    for shown in (run.reports[2], run.engine.plan()):
        text = shown._repr_html_()
        assert text.startswith("<pre>")
        assert unescape(text[len("<pre>") : -len("</pre>")]) == str(shown)


def test_changes_of_state_make_a_frame(run: SmallRun) -> None:
    frame = pd.concat([report.to_frame() for report in run.reports])
    told = run.facts("lifecycle")
    assert list(frame["new"]) == [step["new"] for step in told]
    assert list(frame["epoch"]) == [step["epoch"] for step in told]
    assert set(frame["layer_name"]) == {"fc1"}
