"""Many scopes before one service: those that nobody asks are closed, and nothing is forgotten."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from esper.contracts.errors import SelectionError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.server.choosers import Choosers
from esper.server.ranks import Settings
from esper.stores import open_store
from tests.services import Service

pytestmark = pytest.mark.dist

SCOPES = [f"user {number}" for number in range(6)]


@contextmanager
def choosers(folder: Path, most: int) -> Iterator[Choosers]:
    url = f"sqlite:///{folder / f'{most}.db'}"
    with closing(Choosers(lambda _: open_store(url), Settings(), most)) as made:
        yield made


def choose(made: Choosers, scope: str) -> str:
    with made.of("main", scope) as chooser:
        decision, _ = chooser.choose("fc1", [0, 1, 2], SelectionContext(), 30.0)
    assert len(made._made) <= made._most
    return decision.decision_id


def tell(made: Choosers, scope: str, decision: str, reward: float) -> bool:
    with made.of("main", scope) as chooser:
        counted = chooser.tell(decision, PerformanceDelta(reward=reward))
        chooser.settle()
    return counted


def seeds_of(made: Choosers) -> list[str]:
    """Choices of all scopes in turn, each told what it earned once all have chosen."""
    chosen = []
    for _ in range(5):
        decisions = [choose(made, scope) for scope in SCOPES]
        chosen += [decision.rpartition("/")[2] for decision in decisions]
        for number, (scope, decision) in enumerate(zip(SCOPES, decisions, strict=True)):
            assert tell(made, scope, decision, 0.1 * number)
            assert not tell(made, scope, decision, 9.0)
    return chosen


def test_a_scope_that_was_closed_goes_on_as_one_that_stayed_open(tmp_path: Path) -> None:
    with choosers(tmp_path, 2) as few, choosers(tmp_path, 100) as many:
        assert seeds_of(few) == seeds_of(many)
        assert len(few._made) == 2
        for scope in SCOPES:
            with few.of("main", scope) as one, many.of("main", scope) as other:
                ours, theirs = one.tracker.layer("fc1"), other.tracker.layer("fc1")
                assert ours
                assert theirs
                ended = [{k: s.outcomes for k, s in la.seeds.items()} for la in (ours, theirs)]
                assert ended[0] == ended[1]


def test_one_in_use_stays_open_whatever_others_ask(tmp_path: Path) -> None:
    with choosers(tmp_path, 2) as made, made.of("main", "mine") as mine:
        for scope in SCOPES:
            choose(made, scope)
        decision, _ = mine.choose("fc1", [0], SelectionContext(), 30.0)
        assert mine.tell(decision.decision_id, PerformanceDelta(reward=1.0))
        mine.settle()


def test_events_of_a_scope_that_was_closed_are_rewarded(tmp_path: Path) -> None:
    with choosers(tmp_path, 1) as made:
        for scope in SCOPES:
            with made.ranks("main", scope) as ranks:
                ranks.rank(["a", "b"], f"of {scope}", excluded=[], deferred=True)
        for scope in SCOPES:
            with made.ranks("main", scope) as ranks:
                ranks.activate(f"of {scope}")
        for scope in SCOPES:
            with made.ranks("main", scope) as ranks:
                ranks.reward(f"of {scope}", 1.0)
                with pytest.raises(SelectionError, match="no event"):
                    ranks.reward(f"of {scope}", 1.0)


def test_many_threads_and_few_places_lose_no_outcome(tmp_path: Path) -> None:
    def ask(number: int) -> bool:
        scope = f"user {number}"
        return all(tell(made, scope, choose_now(scope), 0.5) for _ in range(3))

    def choose_now(scope: str) -> str:
        with made.of("main", scope) as chooser:
            return chooser.choose("fc1", [0, 1], SelectionContext(), 30.0)[0].decision_id

    with choosers(tmp_path, 2) as made, ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(18)))
    with open_store(f"sqlite:///{tmp_path / '2.db'}", read_only=True) as store:
        assert len(list(store.read(kinds=["outcome"]))) == 18 * 3


def test_a_service_with_few_files_answers_more_scopes_than_it_has(tmp_path: Path) -> None:
    service = Service(tmp_path, f"sqlite:///{tmp_path / 'h.db'}", "--rate", "1000000")
    service.start(files=160)
    try:
        for number in range(120):
            body = {"scope": f"user {number}", "layer": "fc1", "seeds": [0, 1]}
            assert service.ask("POST", "/main/v1/choices", body).status == 200
    finally:
        service.kill()
