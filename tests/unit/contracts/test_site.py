"""Where a kernel sits: one value in request, decision, event, checkpoint and report."""

import pytest

from esper.contracts.selection import decision_data, decision_from
from esper.contracts.site import Kind, Site
from tests.unit.services.small_run import KEPT, SmallRun, settings


def test_the_site_of_a_graft_is_the_same_everywhere() -> None:
    run = SmallRun(config=settings(max_active=1), layers=("fc1",), worth=(KEPT,)).run(8)
    verdict = next(verdict for report in run.reports for verdict in report.verdicts)
    decision = next(report.decision for report in run.reports if report.decision)
    [site] = {verdict.site, decision.site, decision_from(decision_data(decision)).site}
    assert site == Site("fc1", "layer")
    for kind in ("request", "decision", "lifecycle", "outcome", "graft"):
        assert {Site.parse(data["layer"]) for data in run.facts(kind)} == {site}
    for saved in run.engine.state_dict()["grafts"]["grafts"]:
        assert decision_from(saved["decision"]).site == site


@pytest.mark.parametrize("name", ["fc1", "", "encoder.layer.0", "odd:name"])
@pytest.mark.parametrize("kind", ["layer", "width"])
def test_the_text_of_a_site_is_read_back(name: str, kind: Kind) -> None:
    assert Site.parse(str(Site(name, kind))) == Site(name, kind)
    assert (str(Site(name, kind)) == name) is (kind == "layer")
