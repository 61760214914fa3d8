"""The record of a choice: what is worked out late reads as if it had been there at once."""

from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial

import pytest

from esper.contracts.selection import SelectionReason

_made: list[str] = []


def _sentence(word: str) -> str:
    _made.append(word)
    return f"because of {word}"


def _given() -> SelectionReason:
    return SelectionReason("ucb", 1, 0.5, {1: 0.5}, 1.0, "because of luck")


def _lazy() -> SelectionReason:
    return SelectionReason("ucb", 1, 0.5, {1: 0.5}, 1.0, partial(_sentence, "luck"))


def test_a_sentence_is_made_when_it_is_first_read_and_only_then() -> None:
    _made.clear()
    reason = _lazy()
    assert not _made
    assert [reason.reason, reason.reason] == ["because of luck"] * 2
    assert _made == ["luck"]


def test_a_sentence_made_late_is_equal_to_one_given() -> None:
    assert _lazy() == _given()
    assert repr(_lazy()) == repr(_given())
    assert asdict(_lazy()) == asdict(_given())
    assert deepcopy(_lazy()) == _given()
    assert replace(_lazy(), fallback=True).reason == "because of luck"


def test_a_sentence_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        _lazy().reason = "another"  # type: ignore[misc]


def test_a_reason_without_its_features_still_knows_how_likely_each_seed_was() -> None:
    chances = {0: 0.7, 1: 0.3, 2: 0.0}
    reason = SelectionReason(
        "lin_ts", 1, 0.5, {}, chances, "why", alternatives_considered=(0, 2), features=(1.0,)
    )
    for one in (reason, reason):  # before its propensity is read, and after
        plain = one.with_(features=())
        assert plain.features == ()
        assert plain.propensities == chances
        assert (plain.propensity, one.propensity, one.features) == (0.3, 0.3, (1.0,))
