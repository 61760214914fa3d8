"""Two real processes, each with a replica: both are told before the first batch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.loops.processes import two_processes
from tests.loops.situations import situations

SCRIPT = """
import sys
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tests.loops.trial import Net, Trial, adam
rank, path = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
trial = Trial(grown=True)
model = DistributedDataParallel(trial.wrap(Net()))
try:
    trial.tamiyo(model, adam(model))
except ValueError as error:
    print(error)
distributed.destroy_process_group()
"""


@pytest.mark.dist
@pytest.mark.slow
def test_each_of_two_processes_is_refused(tmp_path: Path) -> None:
    (sentence,) = [s.refusal for s in situations() if s.loop is two_processes]
    command = [sys.executable, "-c", SCRIPT]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "group")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=120)[0].strip() for process in started]
    assert told == [sentence, sentence]
