import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx
from typing_extensions import override

from esper.blueprints import BLUEPRINTS
from esper.testing.blueprint_laws import BlueprintLaws, Case, SequenceLaws, cases, example
from esper.testing.width_laws import WIDTHS, WidthLaws

CASES = cases(BLUEPRINTS.create(name) for name in BLUEPRINTS.names())
UNITS = cases((BLUEPRINTS.create(name) for name in BLUEPRINTS.names()), WIDTHS)


def in_time(case: Case) -> bool:
    """True for a kernel that may read only the past."""
    return case.spec.causal or "sequence" in set(case.blueprint.kinds) & set(case.spec.kinds)


class TestEveryBlueprint(BlueprintLaws):
    @pytest.fixture(params=CASES, ids=str)
    @override
    def case(self, request: pytest.FixtureRequest) -> Case:
        case = request.param
        assert isinstance(case, Case)
        return case


class TestEveryBlueprintOfSequences(SequenceLaws):
    @pytest.fixture(params=[case for case in CASES if in_time(case)], ids=str)
    @override
    def case(self, request: pytest.FixtureRequest) -> Case:
        case = request.param
        assert isinstance(case, Case)
        return case


class TestEveryBlueprintOfUnits(WidthLaws):
    @pytest.fixture(params=UNITS, ids=str)
    @override
    def case(self, request: pytest.FixtureRequest) -> Case:
        case = request.param
        assert isinstance(case, Case)
        return case


def test_every_blueprint_stands_before_the_laws() -> None:
    every = [*CASES, *UNITS]
    assert {case.blueprint.name for case in every} == set(BLUEPRINTS.names())
    served = {(c.blueprint.name, kind) for c in every for kind in c.spec.kinds}
    assert served >= {
        (name, kind) for name in BLUEPRINTS.names() for kind in BLUEPRINTS.load(name).kinds
    }


def test_a_blueprint_knows_its_name() -> None:
    assert all(BLUEPRINTS.load(name).name == name for name in BLUEPRINTS.names())


def test_traced_kernels_run_where_esper_is_not(tmp_path: Path) -> None:
    rows = []
    for case in CASES:
        kernel, x = case.awake(), example(case.spec)
        rows.append((str(case), fx.symbolic_trace(kernel), x, kernel(x)))
    torch.save(rows, tmp_path / "kernels.pt")
    program = """
import sys
sys.modules["esper"] = None  # any import of it fails
import torch
rows = torch.load(sys.argv[1], weights_only=False)
for name, kernel, x, y in rows:
    assert torch.equal(kernel(x), y), name
print(len(rows))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "kernels.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(CASES)
