"""Redis as it fails in life: killed, stalled, restarted, locked, full, newer."""

import random  # noqa: TID251 (to see that nobody else draws from it)
import re
import threading
import time
from collections.abc import Callable

import pytest
import redis
import redis.asyncio

from esper.contracts.errors import ConfigError, LossError, StoreError
from esper.contracts.events import LOST, Event
from esper.stores import open_store
from esper.stores.journal import Journal
from esper.stores.redis import RedisStore
from esper.testing.writer_laws import event, numbers, told
from tests.servers import RedisServer

pytestmark = pytest.mark.redis

Start = Callable[..., RedisServer]


def test_a_killed_server_loses_nothing_acknowledged(own_redis_server: Start) -> None:
    server = own_redis_server()
    acknowledged: list[int] = []
    enough = threading.Event()

    def write(worker: int) -> None:
        with open_store(server.url) as store:
            for i in range(1_000_000):
                number = worker * 1_000_000 + i
                try:
                    store.append([event(number)])
                except StoreError:
                    return
                acknowledged.append(number)
                if len(acknowledged) > 500:
                    enough.set()

    with open_store(server.url) as reader:
        workers = [threading.Thread(target=write, args=(worker,)) for worker in range(2)]
        for worker in workers:
            worker.start()
        assert enough.wait(30)
        server.kill()
        for worker in workers:
            worker.join()
        with pytest.raises(StoreError, match=re.escape(server.url)):
            reader.read()
        server.start()
        stored = numbers(reader.read())  # the same object: it reconnects
        assert set(acknowledged) <= set(stored)
        assert len(stored) == len(set(stored)) <= len(acknowledged) + 2
        reader.append([event(-1)])  # the script is loaded again too
        assert numbers(reader.read()) == [*stored, -1]


def test_a_write_repeated_at_a_stalled_server_counts_once(own_redis_server: Start) -> None:
    server = own_redis_server()
    with open_store(f"{server.url}?socket_timeout=0.1") as store:
        store.append([event(0)])
        server.stall()
        with pytest.raises(StoreError):
            store.append([event(1), event(2)])
        server.resume()
        store.append([event(1), event(2), event(3)])
        assert numbers(store.read()) == [0, 1, 2, 3]
    with redis.Redis(port=server.port) as client:
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert calls > 3  # it was sent again, and the server did receive it again


@pytest.mark.parametrize("how", ["killed", "stalled"])
def test_a_journal_goes_on_without_its_server(own_redis_server: Start, how: str) -> None:
    server = own_redis_server()
    store = open_store(f"{server.url}?socket_timeout=0.05&socket_connect_timeout=0.05")
    with Journal(store) as journal:
        journal.append(event(0))
        journal.flush()
        server.kill() if how == "killed" else server.stall()
        for i in range(1, 1000):
            journal.append(event(i))
        assert journal.waiting == 999
        with pytest.raises(StoreError, match=f"999 events are not stored yet: .*{server.url}"):
            journal.flush()
        server.start() if how == "killed" else server.resume()
        journal.append(event(1000))
        journal.flush()
        assert journal.waiting == 0
        assert numbers(journal.read()) == list(range(1001))


def test_an_outage_draws_no_random_number(own_redis_server: Start) -> None:
    server = own_redis_server()
    with open_store(server.url) as store:
        server.kill()
        before = random.getstate()
        with pytest.raises(StoreError):
            store.append([event(1)])
        assert random.getstate() == before


def test_passwords_open_and_are_never_shown(own_redis_server: Start) -> None:
    server = own_redis_server("--requirepass", "s3cret")
    good = server.url.replace("//", "//:s3cret@")
    with open_store(good) as store:
        store.append([event(0)])
    for url in (server.url, good.replace("s3cret", "wr0ng")):
        with pytest.raises(StoreError, match=f"{server.url} .*login") as caught:
            open_store(url)
        assert "wr0ng" not in str(caught.value)


def test_a_unix_socket(own_redis_server: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    server = own_redis_server("--unixsocket", str(path))
    with open_store(f"unix://{path}?db=0") as store:
        store.append([event(0)])
    twin = redis.asyncio.Redis(unix_socket_path=str(path))
    with RedisStore(twin) as store, open_store(server.url) as other:
        store.append([event(1)])
        assert numbers(store.read()) == numbers(other.read()) == [0, 1]
        assert store.address == f"unix://{path}?db=0"


def test_an_async_client_lends_address_login_and_database(own_redis_server: Start) -> None:
    server = own_redis_server("--requirepass", "s3cret")
    client = redis.asyncio.Redis(port=server.port, db=5, password="s3cret", protocol=2)
    with RedisStore(client) as store:
        store.append([event(0)])
        assert store.address == f"redis://localhost:{server.port}/5"
    with redis.Redis(port=server.port, db=5, password="s3cret") as plain:
        assert plain.xlen("{esper}:scope:s") == 1


def test_an_async_client_with_tls_keeps_it(redis_server: RedisServer) -> None:
    # The server has no TLS: it takes the greeting for a command, and the handshake times out.
    client = redis.asyncio.Redis(port=redis_server.port, ssl=True, socket_timeout=0.1)
    with pytest.raises(StoreError, match=rf"rediss://localhost:{redis_server.port}/0 .*Timeout"):
        RedisStore(client)


def test_a_newer_schema_is_refused_also_in_mid_run(
    redis_server: RedisServer, redis_key: str
) -> None:
    newer = "schema version 3, not the 2 that this Esper knows; upgrade"
    with (
        redis.Redis(port=redis_server.port) as client,
        RedisStore(client, key=redis_key) as store,
    ):
        store.append([event(0)])
        client.set(f"{{{redis_key}}}:schema", 3)
        with pytest.raises(StoreError, match=newer):
            store.append([event(1)])
        with pytest.raises(StoreError, match=newer):
            RedisStore(client, key=redis_key)
        assert numbers(store.read()) == [0]


@pytest.mark.parametrize("part", ["meta", "ids", "scope:s"])
def test_a_key_of_another_program_is_left_alone(
    redis_server: RedisServer, redis_key: str, part: str
) -> None:
    with redis.Redis(port=redis_server.port, decode_responses=True) as client:
        client.set(f"{{{redis_key}}}:{part}", "theirs")
        with RedisStore(client, key=redis_key) as store:
            with pytest.raises(StoreError, match=f"WRONGTYPE.*{part} is a string"):
                store.append([event(0)])
            kept = {f"{{{redis_key}}}:{name}" for name in (part, "schema", "meta")}
            assert set(client.keys(f"{{{redis_key}}}:*")) <= kept
            assert client.get(f"{{{redis_key}}}:{part}") == "theirs"


def test_an_entry_of_another_program_is_named(redis_server: RedisServer, redis_key: str) -> None:
    with (
        redis.Redis(port=redis_server.port) as client,
        RedisStore(client, key=redis_key) as store,
    ):
        store.append([event(0)])
        client.xadd(f"{{{redis_key}}}:scope:s", {"op_id": "x"})
        assert numbers(store.read()) == [0]
        (why,) = store.quarantined.values()
        assert "it has no field b'kind'" in why


def test_a_place_of_the_first_schema_is_taken_over(
    redis_server: RedisServer, redis_key: str
) -> None:
    with redis.Redis(port=redis_server.port, decode_responses=True) as client:
        key = f"{{{redis_key}}}:"
        client.set(f"{key}schema", 1)
        for number in range(3):
            fields = {"op_id": f"op-{number}", "kind": "outcome", "scope": "s", "run": "r"}
            client.xadd(f"{key}events", fields | {"data": f'{{"number":{number}}}', "schema": 1})
            client.sadd(f"{key}op_ids", f"op-{number}")
        for _ in range(2):
            with RedisStore(client, key=redis_key) as store:
                assert [found for _, found in store.read()] == [event(i) for i in range(3)]
                store.append([event(1)])
        assert not client.exists(f"{key}events", f"{key}op_ids")
        assert client.get(f"{key}schema") == "2"


# A server that forgets


@pytest.mark.parametrize("part", ["meta", "ids", "writers", "scopes", "scope:s", "scope:*", "*"])
def test_evicted_keys_are_missed_and_told_again(
    redis_server: RedisServer, redis_key: str, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis(port=redis_server.port) as client:
        journal = Journal(RedisStore(client, key=redis_key))
        journal.append_all([*told("w", *range(8)), event(100, scope="t")])
        journal.flush()
        for key in client.scan_iter(match=f"{{{redis_key}}}:{part}"):
            client.delete(key)
        journal.append_all(told("w", 8))
        journal.flush()
        stored = sorted(numbers(journal.read()))
        assert stored == [*range(9), 100]
        assert sorted(numbers(journal.read(scope="s"))) == list(range(9))
        journal.append_all(told("w", 9))
        journal.flush()
        assert len(list(journal.read())) == 11
        assert journal.store.next_number("w") == 10
        assert "told again" in caplog.text
        journal.close()


def test_a_server_that_restarts_without_its_file_is_noticed(
    own_redis_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_redis_server("--appendonly", "no")
    with Journal(open_store(server.url)) as journal:
        for first in range(0, 1500, 100):
            journal.append_all(told("w", *range(first, first + 100)))
            journal.flush()
        server.kill()
        server.start()
        journal.append_all(told("w", 1500))
        journal.flush()
        found = [found for _, found in journal.read()]
        (lost,) = [one for one in found if one.kind == LOST]
        assert (lost.data["first"], lost.number) == (0, 499)
        assert numbers(journal.read(kinds=["outcome"])) == list(range(500, 1501))
    assert "is not the store that it was: the server was restarted without" in caplog.text
    assert "0 are told again, 500 are lost" in caplog.text


def test_a_reader_misses_what_it_read(own_redis_server: Start) -> None:
    server = own_redis_server("--appendonly", "no")
    with open_store(server.url) as store:
        store.append([event(0)])
        server.kill()
        server.start()
        with pytest.raises(LossError, match="not the store that it was"):
            store.read()
        assert list(store.read()) == []


def test_settings_that_lose_events_are_told(own_redis_server: Start) -> None:
    with open_store(own_redis_server().url) as store:
        assert store.advice() == []
    server = own_redis_server("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    with open_store(server.url) as store:
        assert [line.partition("; ")[2] for line in store.advice()] == [
            "start the server with: appendonly yes",
            "set: maxmemory-policy noeviction",
        ]
        with redis.Redis(port=server.port) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", server.port + 1)
        assert "is a replica, which takes no events" in store.advice()[2]


def test_a_full_server_takes_a_batch_whole_or_not_at_all(own_redis_server: Start) -> None:
    server = own_redis_server("--maxmemory-policy", "noeviction")
    with redis.Redis(port=server.port) as client, RedisStore(client) as store:
        store.append([event(0)])
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="maxmemory"):
            store.append([event(1), event(2)])
        client.config_set("maxmemory", 0)
        assert numbers(store.read()) == [0]
        store.append([event(1), event(2)])
        assert numbers(store.read()) == [0, 1, 2]


def test_nothing_expires_and_keys_share_a_slot(redis_server: RedisServer, redis_key: str) -> None:
    with (
        redis.Redis(port=redis_server.port, decode_responses=True) as client,
        RedisStore(client, key=redis_key) as store,
    ):
        store.append([event(0)])
        keys = client.keys(f"*{redis_key}*")
        assert len(keys) == 5
        assert all(client.ttl(key) == -1 for key in keys)
        assert len({client.execute_command("CLUSTER KEYSLOT", key) for key in keys}) == 1


def test_a_cluster_of_one(own_redis_server: Start) -> None:
    server = own_redis_server("--cluster-enabled", "yes")
    with redis.Redis(port=server.port, decode_responses=True) as node:
        node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        for _ in range(200):
            if node.cluster("info")["cluster_state"] == "ok":
                break
            time.sleep(0.05)
    with redis.RedisCluster("127.0.0.1", server.port) as cluster, RedisStore(cluster) as store:
        store.append([event(0), event(1)])
        store.append([event(1), event(2)])
        (first, _), *_ = store.read()
        assert numbers(store.read(first)) == [1, 2]
    asynchronous = redis.asyncio.RedisCluster("127.0.0.1", server.port)
    with pytest.raises(ConfigError, match=r"pass a synchronous redis\.RedisCluster"):
        RedisStore(asynchronous)  # type: ignore[arg-type]


def test_a_users_client_is_left_open(redis_server: RedisServer, redis_key: str) -> None:
    with redis.Redis(port=redis_server.port, single_connection_client=True) as client:
        RedisStore(client, key=redis_key).close()
        assert client.connection is not None
        assert client.ping()


def test_a_batch_too_long_for_one_command(redis_server: RedisServer, redis_key: str) -> None:
    with RedisStore.from_url(redis_server.url, key=redis_key) as store:
        many = [Event(str(i), "k") for i in range(50_001)]
        with pytest.raises(StoreError, match="at most 50000 at once"):
            store.append(many)
        store.append(many[1:])
    with redis.Redis(port=redis_server.port) as client:
        assert client.xlen(f"{{{redis_key}}}:scope:") == 50_000
