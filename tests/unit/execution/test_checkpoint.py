"""Checkpoints: bit for bit, no pickle, and never half of a file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random  # noqa: TID251 (where files are damaged)
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from esper.contracts.errors import StoreError
from esper.execution import checkpoint

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return same and bits(a) == bits(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and repr(a) == repr(b)


def bits(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().flatten()
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_tensors_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100).abs().to(dtype)
    checkpoint.save(tmp_path / "c", {"t": tensor})
    assert equal(checkpoint.load(tmp_path / "c"), {"t": tensor})


def test_what_is_not_a_number_comes_back(tmp_path: Path) -> None:
    strange = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    tree = {"t": strange, "nan": float("nan"), "inf": float("-inf"), "tiny": 5e-324}
    checkpoint.save(tmp_path / "c", tree)
    assert equal(checkpoint.load(tmp_path / "c"), tree)


def test_plain_values_and_integer_keys(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    tree = {
        "state": {0: {"step": torch.tensor(3.0)}, 12: {}, "0": "a string key beside the integer"},
        "list": [1, 2.5, None, True, "ü", [], {"items": 1, "tensor": 2}],
        "one": shared,
        "view": shared.view(2, 2).T,
        "large": 2**70,
    }
    checkpoint.save(tmp_path / "c", tree)
    found = checkpoint.load(tmp_path / "c")
    assert equal(found, tree)
    assert set(found["state"]) == {0, 12, "0"}


def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    ends = []
    for resumed in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(4):
            if resumed and step == 2:
                checkpoint.save(
                    tmp_path / "c", {"model": model.state_dict(), "opt": optimizer.state_dict()}
                )
                model = nn.Linear(4, 4)
                optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
                state = checkpoint.load(tmp_path / "c")
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["opt"])
            optimizer.zero_grad()
            torch.autograd.backward(model(torch.ones(2, 4)).square().sum())
            optimizer.step()
        ends.append(model.state_dict())
    assert equal(*(dict(end) for end in ends))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": object()}, "not object"),
        ({"a": {1, 2}}, "not set"),
        ({"a": 1j}, "not complex"),
        ({(1, 2): 3}, "keys of a checkpoint are strings or integers"),
        ({"a": {None: 3}}, "keys of a checkpoint"),
    ],
)
def test_what_it_cannot_hold_is_refused_and_the_old_file_stays(
    tree: dict[Any, Any], message: str, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "c", {"old": 1})
    with pytest.raises(TypeError, match=message):
        checkpoint.save(tmp_path / "c", tree)
    assert checkpoint.load(tmp_path / "c") == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


DIES = """
import os, sys
from pathlib import Path
import torch
from esper.execution import checkpoint
os.fsync = lambda file: os._exit(9) if os.truncate(file, 100) is None else None
checkpoint.save(Path(sys.argv[1]), {"new": torch.zeros(1000)})
"""


def test_a_process_that_dies_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c"
    checkpoint.save(path, {"old": torch.ones(3)})
    died = subprocess.run([sys.executable, "-c", DIES, path], check=False)
    assert died.returncode == 9
    assert equal(checkpoint.load(path), {"old": torch.ones(3)})
    checkpoint.save(path, {"next": 1})
    assert checkpoint.load(path) == {"next": 1}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing.c cannot be written"):
        checkpoint.save(tmp_path / "missing" / "c", {"a": torch.ones(1)})


def raw(path: Path, **metadata: str) -> None:
    save_file({"0": torch.ones(1)}, path, metadata=metadata)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(StoreError, match="cannot be read"):
        checkpoint.load(path)
    path.write_bytes(b"not a file of ours")
    with pytest.raises(StoreError, match="cannot be read"):
        checkpoint.load(path)
    checkpoint.save(path, {"t": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match="cannot be read"):
        checkpoint.load(path)
    raw(path)
    with pytest.raises(StoreError, match="is not a checkpoint of Esper's"):
        checkpoint.load(path)
    raw(path, schema="3", tree="{}")
    with pytest.raises(StoreError, match="schema 3, this version reads up to 2; upgrade"):
        checkpoint.load(path)
    for tree in ("{", json.dumps({"items": [["a", {"tensor": 7}]]}), json.dumps({"other": 1})):
        raw(path, schema="1", tree=tree)
        with pytest.raises(StoreError, match="or a damaged one"):
            checkpoint.load(path)
    raw(path, schema="one", tree="{}")
    with pytest.raises(StoreError, match="or a damaged one"):
        checkpoint.load(path)


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path, random = tmp_path / "c", Random(1)
    tree = {"a": torch.randn(40), "b": {"text": "x" * 50, "n": [1, 2.5]}, "c": torch.ones(3).bool()}
    checkpoint.save(path, tree)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        at, length = random.randrange(len(whole)), random.choice([1, 1, 8, 64])
        if random.random() < 0.5:
            damaged[at] ^= 1 << random.randrange(8)
        else:
            damaged[at : at + length] = bytes(len(damaged[at : at + length]))
        path.write_bytes(damaged)
        try:
            found = checkpoint.load(path)
        except StoreError:
            continue
        assert equal(found, tree)  # spaces of the header, or zeros over zeros


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    tree = json.dumps({"items": [["a", {"tensor": 0}]]})
    raw(tmp_path / "c", schema="1", tree=tree)
    assert equal(checkpoint.load(tmp_path / "c"), {"a": torch.ones(1)})


def test_a_long_backlog_fits(tmp_path: Path) -> None:
    tree = {"events": ["x" * 1000] * 110_000}  # the header of a file may have 100 MB
    checkpoint.save(tmp_path / "c", tree)
    assert checkpoint.load(tmp_path / "c") == tree


def test_a_checkpoint_is_on_the_disk_when_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = Path.replace

    def noted(path: Path, target: Path) -> Path:
        done.append("replace")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    monkeypatch.setattr(os, "fsync", lambda _: done.append("fsync"))
    checkpoint.save(tmp_path / "c", {"a": 1})
    assert done == ["fsync", "replace", "fsync"]
