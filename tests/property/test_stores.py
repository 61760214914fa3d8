"""Whatever is appended, in whatever batches, every store gives back what a list would."""

import tempfile
from collections.abc import Callable, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.contracts.errors import ConfigError, ConflictError
from esper.contracts.events import Event
from esper.stores import MetricsStore
from esper.stores.memory import MemoryStore
from esper.stores.payload import checked, decode, encode, same
from esper.stores.redis import RedisStore
from esper.stores.sqlite import SqliteStore
from tests.servers import RedisServer

any_text = st.text(st.characters(codec="utf-8"), max_size=6)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
json_data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
events = st.builds(
    Event,
    op_id=st.sampled_from("abcdefghijkl"),  # few, so that some repeat
    kind=st.sampled_from(["decision", "outcome"]),
    scope=any_text,
    run=st.sampled_from(["", "r"]),
    data=st.dictionaries(st.text(max_size=4), json_data, max_size=4),
)


QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@QUICK
@given(st.dictionaries(st.text(), json_data))
def test_data_comes_back_equal_to_the_bit(data: dict[str, Any]) -> None:
    (event,) = checked([Event("x", "k", data=data)])
    assert repr(decode(encode(event.data))) == repr(data)


@QUICK
@given(json_data, st.sampled_from([nan, inf, -inf, (1,), {2: 3}, {4}, b"5", 6j, object()]))
def test_what_is_not_json_is_found_wherever_it_is(data: Any, bad: object) -> None:
    for around in ([data, bad], {"a": {"b": bad}, "c": data}, [[bad]], bad):
        with pytest.raises(ConfigError, match=r"event 'x' of kind 'k': data\.top"):
            checked([Event("x", "k", data={"top": around})])


def check_like_a_list(make: Callable[[], MetricsStore], batches: Sequence[list[Event]]) -> None:
    expected: dict[str, Event] = {}
    with make() as store:
        for batch in batches:
            told = dict(expected)
            if any(not same(told.setdefault(event.op_id, event), event) for event in batch):
                with pytest.raises(ConflictError):
                    store.append(batch)
                continue
            store.append(batch)
            expected = told
        log = list(expected.values())
        read = list(store.read())
        assert [event for _, event in read] == log
        for scope in {event.scope for event in log}:
            for kinds in (None, ["outcome"]):
                wanted = [
                    event
                    for event in log
                    if event.scope == scope and (kinds is None or event.kind in kinds)
                ]
                assert [event for _, event in store.read(scope=scope, kinds=kinds)] == wanted
        for index, (position, _) in enumerate(read):
            assert [event for _, event in store.read(position)] == log[index + 1 :]


@QUICK
@given(st.lists(st.lists(events, max_size=5), max_size=4))
def test_memory(batches: list[list[Event]]) -> None:
    check_like_a_list(MemoryStore, batches)


@QUICK
@given(st.lists(st.lists(events, max_size=5), max_size=4))
def test_sqlite(batches: list[list[Event]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_like_a_list(lambda: SqliteStore(Path(folder) / "h.db"), batches)


@pytest.mark.redis
@QUICK
@given(st.lists(st.lists(events, max_size=5), max_size=4))
def test_redis(redis_server: RedisServer, batches: list[list[Event]]) -> None:
    key = uuid4().hex
    check_like_a_list(lambda: RedisStore.from_url(redis_server.url, key=key), batches)
