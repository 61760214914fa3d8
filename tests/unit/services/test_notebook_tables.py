"""What a notebook shows of engine, selector and bandit: small tables, escaped."""

from xml.etree import ElementTree as ET

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.drawing.html_tables import html_table
from esper.services.tamiyo.bandit import Bandit
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES
from tests.unit.services.small_run import KEPT, LAYERS, SEEDS, SmallRun, settings


def read(html: str) -> tuple[str, list[list[str]]]:
    """Caption and rows; what is not well formed does not parse."""
    table = ET.fromstring(html)
    cells = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    return "".join(next(table.iter("caption")).itertext()), cells


def test_of_a_bandit_its_arms() -> None:
    bandit = Bandit("ucb", arms=3, name="a<b & c")
    bandit._repr_html_()
    for reward in (0.25, 0.5, 0.75, 0.5):
        bandit.update(bandit.choose(), reward)
    before = bandit.state_dict()
    caption, (head, *rows) = read(bandit._repr_html_())
    assert caption == "Bandit 'a<b & c': ucb, 4 choices"
    assert head[:3] == ["arm", "chosen", "outcomes"]
    assert sum(int(row[1]) for row in rows) == 4
    assert sum(float(row[5]) for row in rows) == 1
    assert bandit.state_dict() == before


def test_of_a_selector_its_seeds_and_who_is_busy() -> None:
    tracker = PerformanceTracker()
    selector = SeedSelector(STRATEGIES.create("thompson"), tracker=tracker)
    context = SelectionContext(current_epoch=3, blueprints={0: "glu", 1: "<gate>"})
    first = selector.decide("fc1", [0], context)
    selector.commit("fc1", 0)
    selector.decide("fc1", [1], context)
    tracker.update_metrics_now("fc1", 0, PerformanceDelta(reward=0.5), decision=first)
    caption, rows = read(selector._repr_html_())
    assert caption == "SeedSelector: thompson"
    assert rows[1:] == [
        ["fc1", "0", "glu", "1", "1", "+0.5", "0", "busy"],
        ["fc1", "1", "<gate>", "1", "0", "-", "1", "reserved"],
    ]
    selector.free("fc1", 0, 4)
    assert read(selector._repr_html_())[1][1][-1] == "free since epoch 4"


def test_of_an_engine_its_seeds_and_what_is_grown() -> None:
    run = SmallRun(config=settings(train_epochs=1), worth=[KEPT]).run(4)
    before = run.state()["random"]
    caption, (_, *rows) = read(run.engine._repr_html_())
    assert caption == f"Tamiyo, epoch 3: {run.engine.used} of 400 parameters grown"
    assert [(row[0], row[2]) for row in rows] == [(la, seed) for la in LAYERS for seed in SEEDS]
    assert {row[-1] for row in rows} >= {"dormant", "fossilized"}
    assert bool((run.state()["random"] == before).all())


def test_a_long_table_is_cut() -> None:
    _, rows = read(html_table("many", ["n"], [[number] for number in range(200)]))
    assert (len(rows), rows[-1]) == (62, ["and 140 more"])
