"""Real processes that train one model: equal to the last bit, or stopped with a reason."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random  # noqa: TID251 (which trouble, seeded)
from typing import Any

import pytest

from esper.testing import integration_laws as laws
from esper.testing.integration_laws import Toy
from tests.frameworks.replicas import DIED, HALF

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.trains]

ROOT = Path(__file__).parents[2]
MODULE = "tests.frameworks.replicas"
LOST = "ReplicaError: rank 0 cannot reach the other processes any more"
STOPPED = "ReplicaError: |by peer"
"""Errors of the others: Esper's own sentence, or torch's if it was in a pass of the loop."""
PASSES = 100
"""A run of the toy has more passes, in training and on the side, in every rank."""
ROUNDS = int(os.environ.get("ROUNDS", "1"))
"""Rounds of drawn trouble; each takes about ten seconds."""

Found = dict[str, list[dict[str, Any]]]


def launch(folder: Path, world: int, *scenarios: str) -> Found:
    """Run scenarios under torchrun; what every rank found, by scenario."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    # A store in a file: no port that somebody else may take.
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*command, "-m", MODULE, str(folder), *scenarios],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LAG": os.environ.get("LAG", "1")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: [json.loads((folder / f"{name}.{r}.json").read_text()) for r in range(world)]
        for name in scenarios
    }


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks2")


@pytest.fixture(scope="module")
def two(folder_of_two: Path) -> Found:
    names = ("whole", "sharded", "late", "stored", "odd", "drift", "alone_in_training")
    return launch(folder_of_two, 2, *names, "refused", "half")


@pytest.fixture(scope="module")
def four(two: Found, folder_of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    del two  # it has left the checkpoint
    folder = tmp_path_factory.mktemp("ranks4")
    (folder / "checkpoint.pt").write_bytes((folder_of_two / "checkpoint.pt").read_bytes())
    return launch(folder, 4, "whole", "resumed")


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {"log": laws.plain(Toy(norm=False)).log()}


def equal(ranks: list[dict[str, Any]]) -> bool:
    return all(rank["fingerprint"] == ranks[0]["fingerprint"] for rank in ranks) and all(
        rank["states"] == ranks[0]["states"] for rank in ranks
    )


def epochs(rank: dict[str, Any]) -> list[tuple[float, int, list[str]]]:
    """Held-out loss, grown parameters and decision, but for the run's name, of every epoch."""
    found = [data for kind, data in rank["log"] if kind == "epoch"]
    return [
        (one["holdout_loss"], one["used"], (one["decision"] or "").split("/")[2:]) for one in found
    ]


def assert_same_run(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Equal decisions and sizes; losses but for the last digits, which sums of shares differ in."""
    assert [row[1:] for row in epochs(ours)] == [row[1:] for row in epochs(theirs)]
    losses = [row[0] for row in epochs(theirs)]
    assert [row[0] for row in epochs(ours)] == pytest.approx(losses, rel=1e-2)


def test_two_and_four_replicas_are_equal_after_ten_epochs(two: Found, four: Found) -> None:
    assert equal(two["whole"])
    assert equal(four["whole"])
    assert len(epochs(two["whole"][0])) == 10
    assert "fossilized" in two["whole"][0]["states"]


def test_growth_adds_nothing_to_what_every_batch_broadcasts(two: Found, four: Found) -> None:
    ranks = two["whole"] + four["whole"]
    assert [rank["broadcast"] for rank in ranks] == [0] * 6  # the toy has no buffers


def test_replicas_do_what_one_process_does_on_whole_batches(
    alone: dict[str, Any], two: Found, four: Found
) -> None:
    assert_same_run(two["whole"][0], alone)
    assert_same_run(four["whole"][0], alone)


def test_a_sharded_holdout_is_judged_as_a_whole(two: Found) -> None:
    assert equal(two["sharded"])
    assert_same_run(two["sharded"][0], two["whole"][0])
    assert epochs(two["sharded"][0])[0][0] == pytest.approx(epochs(two["whole"][0])[0][0], rel=1e-6)


def test_a_rank_that_is_late_changes_nothing(two: Found) -> None:
    assert [rank["fingerprint"] for rank in two["late"]] == [
        rank["fingerprint"] for rank in two["whole"]
    ]


def test_rank_0_alone_writes_the_history(two: Found) -> None:
    ranks = two["stored"]
    assert equal(ranks)
    assert len({rank["run"] for rank in ranks}) == 1
    kinds = [{kind for kind, _ in rank["log"]} for rank in ranks]
    assert kinds[0] >= {"decision", "request", "epoch", "lifecycle"}
    assert "request" not in kinds[1]


def test_a_step_that_fails_in_one_rank_fails_in_all(two: Found) -> None:
    assert equal(two["odd"])
    ends = [[data["why"] for kind, data in rank["log"] if kind == "graft"] for rank in two["odd"]]
    assert ends[0]
    assert len(ends[0]) == len(ends[1])
    assert all("failed by the loop" in why for rank in ends for why in rank)


@pytest.mark.parametrize(
    ("scenario", "sentence"),
    [
        ("drift", "drifted apart: 1 of 4 parameters, as 'net.fc2.bias', have other values on rank"),
        ("alone_in_training", "train the model through DistributedDataParallel"),
    ],
)
def test_replicas_that_drift_are_stopped(scenario: str, sentence: str, two: Found) -> None:
    for rank in two[scenario]:
        assert rank["error"].startswith("ReplicaError: the replicas ")
        assert sentence in rank["error"]


def test_what_one_rank_refuses_all_refuse(two: Found) -> None:
    first, second = (rank["error"] for rank in two["refused"])
    assert second.startswith("ConfigError: holdout has no batches")
    assert first == "ConfigError: esper.Tamiyo failed on rank 1; the message there says why"


def test_a_run_goes_on_in_another_number_of_processes(
    alone: dict[str, Any], two: Found, four: Found
) -> None:
    assert two["half"][0]["states"].count("blending") == 1  # in mid-graft
    assert equal(four["resumed"])
    assert_same_run(
        {"log": two["half"][0]["log"] + [e for e in four["resumed"][0]["log"] if is_late(e)]},
        alone,
    )


def is_late(event: list[Any], first: int = HALF) -> bool:
    return bool(event[0] == "epoch" and event[1]["epoch"] >= first)


@pytest.mark.parametrize("frameworks", [["lightning"], ["accelerate", "transformers"]])
def test_replicas_of_a_framework_are_equal(frameworks: list[str], tmp_path: Path) -> None:
    for ranks in launch(tmp_path, 2, *frameworks).values():
        assert equal(ranks)
        assert [rank["world"] for rank in ranks] == [2, 2]
        assert "fossilized" in ranks[0]["states"]


def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    example = ROOT / "examples" / "torchrun_loop.py"
    done = subprocess.run(
        [*command, str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "epoch 11: held-out loss" in done.stdout
    assert float(done.stdout.rpartition("test loss: ")[2]) < 0.6


@dataclass
class Ended:
    """How a process ended: its exit code, what it found, and what it printed as errors."""

    code: int
    found: dict[str, Any]
    told: str


def unwatched(folder: Path, world: int, scenario: str, **environment: str) -> list[Ended]:
    """Run a scenario in processes that nobody watches, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    ranks = []
    for rank in range(world):
        place = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", MODULE, str(folder), scenario]
        ranks.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | place | address | environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    files = [folder / f"{scenario}.{rank}.json" for rank in range(world)]
    found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    return [Ended(*row) for row in zip([r.returncode for r in ranks], found, told, strict=True)]


def test_a_rank_that_dies_ends_all_with_a_reason(tmp_path: Path) -> None:
    first, second = unwatched(tmp_path, 2, "killed")
    assert second.code == DIED
    assert LOST in first.found.get("error", first.told)


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_rank_that_is_late_or_killed_anywhere(
    number: int, two: Found, four: Found, tmp_path: Path
) -> None:
    draws = Random(number)
    world, killed = draws.choice((2, 4)), draws.random() < 0.5
    trouble = {"rank": draws.randrange(world), "pass": draws.randint(1, PASSES), "killed": killed}
    ranks = unwatched(tmp_path, world, "troubled", TROUBLE=json.dumps(trouble))
    if not killed:
        whole = two["whole"] if world == 2 else four["whole"]
        assert [r.found["fingerprint"] for r in ranks] == [r["fingerprint"] for r in whole]
        return
    for rank, ended in enumerate(ranks):
        if rank == trouble["rank"]:
            assert ended.code == -signal.SIGKILL
        else:
            assert re.search(STOPPED, ended.found.get("error", ended.told))


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_run_is_taken_up_anywhere_by_another_number(
    number: int, alone: dict[str, Any], tmp_path: Path
) -> None:
    draws = Random(number)
    worlds, epochs_done = draws.sample((1, 2, 4), 2), str(draws.randrange(1, 9))
    given = {"HALF": epochs_done} | ({"STORED": "1"} if draws.random() < 0.5 else {})
    before = unwatched(tmp_path, worlds[0], "half", **given)[0].found
    after = unwatched(tmp_path, worlds[1], "resumed", **given)
    assert equal([rank.found for rank in after])
    late = [e for e in after[0].found["log"] if is_late(e, int(epochs_done))]
    assert_same_run({"log": before["log"] + late}, alone)
