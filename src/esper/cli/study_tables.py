"""Tables of the studies: replay, A/B tests and regret, and the progress of a regret study."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from esper.cli.tables import heading, legend, number, percent, table
from esper.studies.logged.ab import AbResult, Comparison
from esper.studies.logged.ab_log import ArmResult
from esper.studies.logged.off_policy import Estimate
from esper.studies.logged.replay import Replay
from esper.studies.simulated.regret import StudySpec, Trial

# --- replay ---------------------------------------------------------------------------------------


def show_replay(console: Console, found: Replay) -> None:
    """Print the estimates of a replay, or why there are none."""
    console.print(heading(f"Replay of {found.strategy}"))
    choosers = ", ".join(found.choosers)
    console.print(Text(f"{found.decisions} decisions of {choosers}, {found.outcomes} outcomes"))
    if found.refusal:
        console.print(Text(f"no estimate: {found.refusal}", style="yellow"))
        return
    for why in found.left_out.values():
        console.print(Text(f"left out: {why}", style="yellow"))
    console.print(
        Text(
            f"{found.used} outcomes count as {found.sample:.0f} of {found.strategy}'s own "
            f"(effective sample size; the largest weight is {found.largest_weight:.1%} of all); "
            f"{found.shared} were first tries or fallbacks, alike for every strategy, the others "
            f"count as {found.own_sample:.0f}"
        )
    )
    right = ("reward", "95 % interval", "gain", "95 % interval of it")
    made = table("", *right, right=right)
    for one in found.estimates:
        gain = (f"{one.gain:+.3g}", _ends(one.gain_interval)) if one.name != "logged" else ("", "")
        made.add_row(one.label, f"{one.value:+.4g}", _ends(one.interval), *gain,
                     style="bold" if one.name == "dr" else "")  # fmt: skip
    console.print()
    console.print(made)
    console.print()
    console.print(Text(_conclusion(found.strategy, found.estimates[-1])))
    console.print(
        legend(
            "Intervals are normal. Each choice is put to the strategy once, with the history that "
            "was logged; how it would have learnt from its own choices is not in this."
        )
    )
    if found.propensity_error:
        console.print(legend(f"Propensities have an error of up to {found.propensity_error:.2g}."))


def _ends(pair: tuple[float, float]) -> str:
    return f"{pair[0]:+.3g} to {pair[1]:+.3g}"


def _conclusion(strategy: str, robust: Estimate) -> str:
    low, high = robust.gain_interval
    if low <= 0 <= high:
        return f"The logs cannot tell {strategy} from what was logged."
    return f"{strategy} would have earned {'more' if low > 0 else 'less'} than what was logged."


# --- A/B ------------------------------------------------------------------------------------------


def show_ab(console: Console, found: AbResult) -> None:
    """Print the verdicts of an A/B test, its arms and guardrails."""
    style = "green" if found.balance.even else "red"
    console.print(heading(f"A/B test {found.test!r}, by {found.unit}"))
    for verdict in found.verdicts:
        console.print(Text(verdict, style=style))
    console.print()
    console.print(_arms_table(found.arms))
    for one in found.comparisons:
        console.print()
        console.print(_guardrails_table(one))
    console.print()
    console.print(
        legend(
            "reward: mean over units; failed: share of outcomes; culled: share of judged kernels; "
            "ms: mean latency of a kernel; worse by: difference with its confidence sequence, of "
            "latency a share of the first arm's; sd: standard deviations of the rewards"
        )
    )
    console.print(Text(found.balance.advice, style="" if found.balance.even else "red"))


def _arms_table(arms: Sequence[ArmResult]) -> Table:
    right = ("weight", "units", "choices", "outcomes", "reward", "failed", "culled", "ms")
    made = table("arm", "strategy", *right, right=right)
    for arm in arms:
        made.add_row(
            arm.arm,
            arm.strategy,
            f"{arm.weight:g}",
            str(arm.units),
            str(arm.decisions),
            str(arm.outcomes),
            number(arm.mean, "+.4g"),
            percent(arm.failure_rate),
            percent(arm.culled_share),
            number(arm.latency_ms, ".3g"),
        )
    return made


def _guardrails_table(one: Comparison) -> Table:
    right = ("worse by", "interval", "limit")
    title = f"Guardrails: {one.arm} against {one.reference}"
    made = table("", *right, "state", right=right, title=title)
    for rail in one.guardrails:
        made.add_row(
            rail.name.replace("_", " "),
            number(rail.worse_by, "+.3f"),
            f"{number(rail.low, '+.2f')} to {number(rail.high, '+.2f')}",
            f"{rail.limit:g}",
            Text(rail.state, style={"crossed": "red", "kept": "green"}.get(rail.state, "dim")),
        )
    return made


# --- regret ---------------------------------------------------------------------------------------


@contextmanager
def progress(console: Console, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress of a study: a bar in a terminal, ten lines in a log; both with the time left.

    Args:
        console: Console of the display.
        unit: What is counted, as ``"runs"``.

    Yields:
        Callback with what is done, all, and where the study is.
    """
    if not console.is_interactive:
        tenths: set[int] = set()
        began, first = monotonic(), 0

        def print_line(done: int, total: int, where: str) -> None:
            nonlocal first
            tenth = done * 10 // total
            first = first or done - 1  # what an earlier start had done took no time in this one
            if tenth not in tenths:
                tenths.add(tenth)
                left = (monotonic() - began) / (done - first) * (total - done)
                line = f"{done} of {total} {unit} done, now at {where}, about {minutes(left)} left"
                console.print(Text(line), soft_wrap=True)

        yield print_line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed} of {task.total} " + unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, expand=True, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def move_bar(done: int, total: int, where: str) -> None:
            bars.update(task, completed=done, total=total, description=where)

        yield move_bar


def minutes(seconds: float) -> str:
    """Time in words.

    Example:
        >>> minutes(40), minutes(400), minutes(8000)
        ('40 s', '7 min', '2.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_regret(
    console: Console, spec: StudySpec, trials: Sequence[Trial], *, baseline: str
) -> None:
    """Print a table of regret for each environment, the best strategy first."""
    for _, group in groupby(trials, key=lambda trial: trial.environment.name):
        console.print(_regret_table(list(group), baseline))
        console.print()
    runs = f"{spec.runs} run" + ("s" if spec.runs > 1 else "")
    note = (
        f"{runs}, seed {spec.seed}. Regret: mean reward of the best arm less that of the chosen "
        "one, added up; ± is the standard error (s.e.). Gain: sum of the rewards, relative to "
        "choosing evenly at random."
    )
    if not all(trial.full for trial in trials if trial.environment.goal):
        note += " Goals are for full runs: --full."
    console.print(legend(note))


def _regret_table(trials: list[Trial], baseline: str) -> Table:
    environment, steps = trials[0].environment, trials[0].steps
    title = f"{environment.name}: {environment.what}; {steps} steps{_goal(trials[0])}"
    right = ("regret ± s.e.", "worst", "x random", "gain")
    judged = ("goal",) if environment.goal and trials[0].full else ()
    made = table("strategy", *right, *judged, right=right, title=title)
    scale = next(trial.mean for trial in trials if trial.strategy == baseline)
    for trial in sorted(trials, key=lambda trial: trial.mean):
        is_baseline = trial.strategy == baseline
        made.add_row(
            trial.strategy,
            _figure(trial.mean) + ("" if trial.stderr is None else f" ± {_figure(trial.stderr)}"),
            _figure(trial.worst),
            f"{trial.mean / scale:.3f}" if scale else "-",
            f"{trial.gain:.2f}",
            *[Text("") if is_baseline else _verdict(trial) for _ in judged],
            style="dim" if is_baseline else "",
        )
    return made


def _goal(trial: Trial) -> str:
    goal = trial.environment.goal
    if goal is None or not trial.full:
        return ""
    limits = (("mean <=", goal.mean), ("worst <=", goal.worst), ("gain >=", goal.gain))
    return "; goal: " + ", ".join(
        f"{name} {limit:g}" for name, limit in limits if limit is not None
    )


def _verdict(trial: Trial) -> Text:
    if trial.missed:
        return Text(f"{' and '.join(trial.missed)} missed", style="yellow")
    return Text("met", style="green")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
