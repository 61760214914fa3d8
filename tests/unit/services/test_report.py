"""What a person reads at the end of an epoch."""

import re

import pytest

from tests.unit.services.small_run import SmallRun, settings


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return [str(report) for report in SmallRun(config=settings(max_active=1)).run(12).reports]


def test_the_first_line_says_where_the_run_stands(reports: list[str]) -> None:
    first = reports[0].splitlines()
    assert re.fullmatch(r"epoch 0: held-out loss 8\.0\d\d\d, 0 of 400 parameters grown", first[0])
    assert first[1:] == ["  warming up until epoch 1"]


def test_an_accuracy_is_shown_if_it_was_asked_for() -> None:
    def close(model: object, batch: object) -> object:
        run = SmallRun.loss_fn(model, batch)
        return (run < 5.0).float()

    run = SmallRun(options={"accuracy_fn": close}).run(1)
    assert f", accuracy {run.reports[0].holdout_accuracy:.1%}, " in str(run.reports[0])


def test_a_beginning_says_what_grows_where_and_why(reports: list[str]) -> None:
    text = next(text for text in reports if "germinated" in text)
    assert "fc1:1 (bottleneck) germinated: bottleneck of 44 parameters: untried" in text
    assert "fc1:1 (bottleneck) training: it trains in the shadow of the host" in text
    assert re.search(
        r"fc1 has had fewest grafts, 0 \(0 kept\), and \d\d% of gradient x input", text
    )


def test_an_end_says_what_the_kernel_was_worth(reports: list[str]) -> None:
    ends = [line for text in reports for line in text.splitlines() if "worth" in line]
    assert len(ends) >= 2
    assert any(" culled: worth " in line and "not more than 2 standard" in line for line in ends)
    assert any(
        " fossilized: worth +" in line and line.endswith(": more than 2 standard errors")
        for line in ends
    )


def test_no_line_is_longer_than_a_person_reads(reports: list[str]) -> None:
    assert all(len(line) <= 180 for text in reports for line in text.splitlines())
