"""Event logs read back as rows."""

from esper.contracts.events import Event
from esper.runs import event_rows


def event(kind: str, **data: object) -> Event:
    return Event(f"digits/run-7/{kind}", kind, "digits", "run-7", data)


EVENTS = [
    event("epoch", epoch=0, decision=None),
    event("decision", decision="digits/run-7/fc1/0", epoch=1),
    event("timing", decision="digits/run-7/fc1/0", latency_ms=0.5),
    event("epoch", epoch=1, decision="digits/run-7/fc1/0"),
    event("failure", decision="digits/run-7/fc1/0"),
]


def test_a_row_has_an_epoch_and_neither_ids_nor_the_name_of_the_run() -> None:
    found = event_rows.rows(EVENTS)
    assert [(row["epoch"], row["kind"]) for row in found] == [
        (0, "epoch"),
        (1, "decision"),
        (1, "epoch"),
        (2, "failure"),  # its epoch has not ended yet
    ]
    assert found[1]["data"]["decision"] == "fc1/0"
    assert "run-7" not in "".join(event_rows.as_lines(found))


def test_what_depends_on_a_clock_stands_apart() -> None:
    (timing,) = event_rows.timings(EVENTS)
    assert timing == {
        "epoch": 1,
        "kind": "timing",
        "data": {"decision": "fc1/0", "latency_ms": 0.5},
    }
