"""Every situation does what docs/loops.md says of it, and the page says what every one does."""

import pytest

from esper.contracts.errors import EsperError
from tests.loops.page import PAGE, written
from tests.loops.situations import Situation, situations
from tests.loops.trial import Trial

pytestmark = pytest.mark.trains
ALL = situations()


def tried(situation: Situation, *, grown: bool) -> Trial:
    trial = Trial(grown=grown)
    trial.seed()
    situation.loop(trial)
    return trial


@pytest.mark.parametrize(
    "situation", [s for s in ALL if not s.refusal], ids=lambda s: f"{s.theme}/{s.name}"
)
def test_what_works(situation: Situation) -> None:
    grown = tried(situation, grown=True)
    if situation.twice:
        control = tried(situation, grown=False)
        for ours, theirs in zip(grown.engines, control.engines, strict=True):
            ours.check(theirs)


@pytest.mark.parametrize(
    "situation", [s for s in ALL if s.refusal], ids=lambda s: f"{s.theme}/{s.name}"
)
def test_what_is_refused(situation: Situation) -> None:
    trial = Trial(grown=True)
    trial.seed()
    with pytest.raises(EsperError) as caught:
        situation.loop(trial)
    assert str(caught.value) == situation.refusal
    assert not any(engine.began for engine in trial.engines), "refused after the first batch"


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    names = [situation.name for situation in ALL]
    assert len(names) == len(set(names)) >= 40


def test_the_page_has_these_rows() -> None:
    assert PAGE.read_text(encoding="utf-8") == written(), "stale: python -m tests.loops.page"
