"""The report of an epoch as text."""

import re

import pytest

from tests.unit.services.small_run import SmallRun, settings


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return [str(report) for report in SmallRun(config=settings(max_active=1)).run(12).reports]


def test_the_first_line_has_epoch_loss_and_budget(reports: list[str]) -> None:
    first = reports[0].splitlines()
    assert re.fullmatch(r"epoch 0: held-out loss 8\.0\d\d\d, 0 of 400 parameters grown", first[0])
    assert first[1:] == ["  no graft: warming up until epoch 1"]


def test_an_accuracy_is_shown_if_it_was_asked_for() -> None:
    def close(model: object, batch: object) -> object:
        run = SmallRun.loss_fn(model, batch)
        return (run < 5.0).float()

    run = SmallRun(options={"accuracy_fn": close}).run(1)
    assert f", accuracy {run.reports[0].holdout_accuracy:.1%}, " in str(run.reports[0])


def test_a_beginning_says_what_grows_where_and_why_once(reports: list[str]) -> None:
    text = " ".join(next(text for text in reports if "chosen" in text).split())
    seed = "layer fc1, seed 1 (bottleneck)"
    assert f"{seed} chosen: bottleneck of 44 parameters: untried" in text
    assert f"{seed} training: it trains in the shadow of the host" in text
    assert re.search(
        r"why now: layer fc1 has had fewest grafts, 0 \(0 kept\), and \d\d% of gradient x input",
        text,
    )
    assert text.count("untried") == 1


def test_an_end_says_what_the_kernel_was_worth(reports: list[str]) -> None:
    text = " ".join(" ".join(reports).split())
    assert text.count(" worth ") >= 2
    assert re.search(r" culled: worth [^:]*: not more than 2 standard errors", text)
    assert re.search(r" kept: worth \+[^:]*: more than 2 standard errors", text)


def test_every_line_fits_eighty_columns(reports: list[str]) -> None:
    assert all(len(line) <= 80 for text in reports for line in text.splitlines())
