"""Runs read back: grafts of logs old and new."""

from pathlib import Path

from esper.contracts.events import Event
from esper.runs.run_folder import RunFolder
from esper.runs.run_reader import Run, grafts, seed_summaries

NEW = [Event("g", "graft", data={"layer": "fc1", "seed": 1, "kept": True})]
OLD = [
    Event("v", "verdict", data={"layer": "fc1", "seed": 1, "kept": True}, schema=0),
    Event("g", "graft", data={"layer_name": "fc1", "seed_idx": 1, "kept": True}, schema=0),
]


def test_a_kept_graft_counts_once_in_logs_of_every_schema(tmp_path: Path) -> None:
    spec = {"layers": ["fc1"], "seeds": ["glu", "gate"]}
    run = Run(folder=RunFolder(tmp_path), spec=spec, control={}, result=None)
    for log in (NEW, OLD):
        assert [(end["layer_name"], end["seed_idx"]) for end in grafts(log)] == [("fc1", 1)]
        assert [seed.kept for seed in seed_summaries(run, log)] == [0, 1]
