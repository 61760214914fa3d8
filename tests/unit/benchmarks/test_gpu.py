"""``python -m benchmarks gpu`` without a GPU: its loops run, and it says what is missing."""

from math import isnan

import pytest
import torch

from benchmarks.gpu import hosts, rows, waits
from benchmarks.overhead import Host, Loop, growth


@pytest.mark.parametrize("host", hosts("cpu", tiny=True), ids=["residual", "transformer"])
def test_its_loops_train_a_seed_on_any_device(host: Host) -> None:
    loop = Loop(host, growth(1)).activate(1)
    loop.step()
    assert loop.active() == 1
    assert isnan(waits(loop)), "there is nothing to wait for"


def test_without_cuda_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA"):
        rows()
