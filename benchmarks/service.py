"""A choice through the service, beside its emptiest route; requests a second; events appended.

All over kept connections of this machine. The service stands before one SQLite file; a choice is
answered once its decision is stored, an outcome once it is.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import urllib3

from esper.contracts.events import Event
from esper.stores import MetricsStore, open_store
from tests.services import Service

CALLS = 1000
THREADS = 4
BATCH = 50


def rows(calls: int = CALLS) -> list[tuple[str, str, str]]:
    """Medians, in turns with their baselines."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        service = Service(place, f"sqlite:///{place}/history.db", "--rate", "1000000").start()
        try:
            return [*_choices(service, calls), *_events(service, place, calls // BATCH)]
        finally:
            service.kill()


def _choices(service: Service, calls: int) -> list[tuple[str, str, str]]:
    pool = urllib3.HTTPConnectionPool("127.0.0.1", service.port, maxsize=THREADS)
    number = count()

    def post(path: str, body: Any) -> Any:
        answer = pool.request("POST", f"/main/v1/{path}", json=body)
        assert answer.status == 200, answer.data
        return answer.json()

    def choose() -> None:
        made = post("choices", {"scope": "s", "layer": f"l{next(number) % 50}", "seeds": [0, 1, 2]})
        took.append(made["decision"])

    def tell() -> None:
        outcome = {"scope": "s", "decision": took.pop(), "reward": 0.01}
        post("outcomes", {"outcomes": [outcome]})

    def pair(_: int) -> None:
        layer = f"p{next(number)}"
        made = post("choices", {"scope": "s", "layer": layer, "seeds": [0, 1, 2]})
        outcome = {"scope": "s", "decision": made["decision"], "reward": 0.01}
        post("outcomes", {"outcomes": [outcome]})

    took = list[str]()
    empty, chosen, told = _in_turns(calls, lambda: pool.request("GET", "/healthz"), choose, tell)
    with ThreadPoolExecutor(THREADS) as threads:
        began = perf_counter()
        for _ in threads.map(pair, range(calls)):
            pass
        rate = 2 * calls / (perf_counter() - began)
    return [
        ("empty route, p50 and p99", _times(empty), ""),
        ("choice, p50 and p99", _times(chosen), f"{_ratio(chosen, empty):.1f} x (goal <= 3)"),
        ("outcome, p50 and p99", _times(told), f"{_ratio(told, empty):.1f} x"),
        (f"choices and outcomes, {THREADS} threads", f"{rate:,.0f} a second", "goal >= 2,000"),
    ]


def _events(service: Service, place: Path, batches: int) -> list[tuple[str, str, str]]:
    number = count()

    def append(store: MetricsStore) -> Callable[[], None]:
        def one() -> None:
            first = next(number) * BATCH
            data = {"reward": 0.0291, "layer": "fc1", "seed": 3}
            store.append([Event(f"e{first + i}", "outcome", "s", "r", data) for i in range(BATCH)])

        return one

    with open_store(service.url) as through, open_store(f"sqlite:///{place}/bare.db") as bare:
        behind, beside = _in_turns(batches, append(through), append(bare))
    return [(f"{BATCH} events appended", _times(behind), f"{_ratio(behind, beside):.1f} x SQLite")]


def _in_turns(calls: int, *works: Callable[[], object]) -> list[list[float]]:
    for work in works:
        work()
    took: list[list[float]] = [[] for _ in works]
    for _ in range(calls):
        for work, times in zip(works, took, strict=True):
            began = perf_counter()
            work()
            times.append(perf_counter() - began)
    return took


def _ratio(one: list[float], other: list[float]) -> float:
    return median(one) / median(other)


def _times(took: list[float]) -> str:
    return f"{1000 * median(took):.2f} ms, {1000 * quantiles(took, n=100)[-1]:.2f} ms"
