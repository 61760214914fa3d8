"""``esper replay`` and ``esper ab``: what the logs say about strategies."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from esper.cli import show
from esper.cli.outermost import FAILED
from esper.contracts.errors import ConfigError
from esper.strategies import STRATEGIES, SelectionStrategy
from esper.studies.logged import logs
from esper.studies.logged.ab import AbResult, Comparison, analyse
from esper.studies.logged.ab_log import ArmResult
from esper.studies.logged.logs import Log
from esper.studies.logged.off_policy import Estimate
from esper.studies.logged.replay import Replay
from esper.studies.logged.replay import replay as replayed

_ESTIMATES = {
    "logged": "what was earned",
    "ips": "ips",
    "snips": "self-normalised",
    "dr": "doubly robust",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the logs are: runs, or a store."""

    runs: Path
    names: Sequence[str]
    store: str | None
    scope: str | None

    def logs(self) -> list[Log]:
        """Read them.

        Raises:
            ConfigError: if neither or both are given, or there is no such run, store or scope.
        """
        if bool(self.names) == bool(self.store):
            raise ConfigError("give the names of runs or a --store, one of the two")
        if self.store:
            return logs.of_store(self.store, self.scope)
        if self.scope:
            raise ConfigError("--scope chooses from a --store; a run has one scope")
        return logs.of_runs(self.runs, self.names)


def replay(
    source: Source, strategy: str, settings: Sequence[str], *, json: bool, picture: Path | None
) -> None:
    """Estimate what another strategy would have earned.

    Raises:
        ConfigError: if a name or a setting is wrong, or there is nothing to replay.
        typer.Exit: with code 1, if the logs cannot tell.
    """
    asked = strategy_of(strategy, settings)
    _check(picture)
    found = replayed(source.logs(), asked)
    if json:
        typer.echo(jsonlib.dumps(_replay_document(found), indent=2))
    else:
        _show_replay(show.out(), found)
    if found.refusal:
        if picture is not None:
            show.err().print(Text("no picture: there is no estimate to draw"), soft_wrap=True)
        raise typer.Exit(FAILED)
    if picture is not None:
        from esper.pictures.logged import draw_replay  # noqa: PLC0415 (needs matplotlib)

        draw_replay(found, picture)
        show.err().print(Text(f"picture: {picture}"), soft_wrap=True)


def ab(
    store: str, *, scope: str | None, test: str | None, json: bool, picture: Path | None
) -> None:
    """Say what an A/B test has shown so far.

    Raises:
        ConfigError: if the store has no such test, or the test has only one arm.
        StoreError: if the store cannot be read.
    """
    _check(picture)
    found = analyse(logs.of_store(store, scope), test=test)
    if json:
        typer.echo(jsonlib.dumps(_ab_document(found), indent=2))
    else:
        _show_ab(show.out(), found)
    if picture is not None:
        from esper.pictures.logged import draw_ab  # noqa: PLC0415 (needs matplotlib)

        draw_ab(found, picture)
        show.err().print(Text(f"picture: {picture}"), soft_wrap=True)


def strategy_of(name: str, settings: Sequence[str]) -> SelectionStrategy:
    """The strategy of this name, set as ``key=value`` says.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value is wrong.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not (key and sign and value):
            raise ConfigError(f"--set {setting!r} is not key=value, as in --set epsilon=0.2")
        if key in values:
            raise ConfigError(f"--set {key} is given twice")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value cannot be read: {error}") from error
    return STRATEGIES.create(name, **values)


def _check(picture: Path | None) -> None:
    if picture is not None:
        from esper.pictures.regret import check  # noqa: PLC0415 (needs matplotlib)

        check(picture)  # now, not after what was asked for is shown


# --- replay ---------------------------------------------------------------------------------------


def _replay_document(found: Replay) -> dict[str, Any]:
    document = {**asdict(found), "interval": "normal, 95 %"}
    document["estimates"] = [
        {**asdict(one), "interval": one.interval, "gain_interval": one.gain_interval}
        for one in found.estimates
    ]
    return document


def _show_replay(console: Console, found: Replay) -> None:
    console.print(Text(f"Replay of {found.strategy}", style="bold"))
    said = f"{found.decisions} decisions of {', '.join(found.choosers)}, {found.outcomes} outcomes"
    console.print(Text(said))
    for why in found.left_out.values():
        if not found.refusal:
            console.print(Text(f"left out: {why}", style="yellow"))
    if found.refusal:
        console.print(Text(f"no estimate: {found.refusal}", style="yellow"))
        return
    console.print(
        Text(
            f"{found.used} outcomes count as {found.sample:.0f} of {found.strategy}'s own "
            f"(effective sample size; the largest weight is {found.largest_weight:.1%} of all); "
            f"{found.shared} were first tries or fallbacks, alike for every strategy, the others "
            f"count as {found.own_sample:.0f}"
        )
    )
    right = ("reward", "95 % interval", "gain", "95 % interval of it")
    made = show.table("", *right, right=right)
    for one in found.estimates:
        made.add_row(*_cells(one), style="bold" if one.name == "dr" else "")
    console.print()
    console.print(made)
    console.print()
    console.print(Text(_moral(found)))
    console.print(
        Text(
            "Intervals are normal. Each choice is put to the strategy once, with the history that "
            "was logged; how it would have learnt from its own choices is not in this.",
            style="dim",
        )
    )
    if found.propensity_error:
        say = f"Propensities were worked out with an error of up to {found.propensity_error:.2g}."
        console.print(Text(say, style="dim"))


def _cells(one: Estimate) -> list[str]:
    def ends(pair: tuple[float, float]) -> str:
        return f"{pair[0]:+.3g} to {pair[1]:+.3g}"

    cells = [_ESTIMATES[one.name], f"{one.value:+.4g}", ends(one.interval)]
    if one.name == "logged":
        return [*cells, "", ""]
    return [*cells, f"{one.gain:+.3g}", ends(one.gain_interval)]


def _moral(found: Replay) -> str:
    robust = found.estimates[-1]
    low, high = robust.gain_interval
    if low > 0:
        return f"{found.strategy} would have earned more than what was logged."
    if high < 0:
        return f"{found.strategy} would have earned less than what was logged."
    return f"The logs cannot tell {found.strategy} from what was logged."


# --- A/B ------------------------------------------------------------------------------------------


def _ab_document(found: AbResult) -> dict[str, Any]:
    document = asdict(found)
    for one, shown in zip(found.comparisons, document["comparisons"], strict=True):
        shown["path"] = [
            [None if not abs(value) < float("inf") else float(value) for value in look]
            for look in zip(
                one.path.counts, one.path.difference, one.path.low, one.path.high, strict=True
            )
        ]
    return document


def _show_ab(console: Console, found: AbResult) -> None:
    style = "green" if found.balance.even else "red"
    console.print(Text(f"A/B test {found.test!r}, by {found.unit}", style="bold"))
    for said in found.verdicts:
        console.print(Text(said, style=style))
    console.print()
    console.print(_arms_table(found.arms))
    for one in found.comparisons:
        console.print()
        console.print(_guardrails_table(one))
    console.print()
    console.print(Text(found.balance.advice, style="" if found.balance.even else "red"))


def _arms_table(arms: Sequence[ArmResult]) -> Any:
    right = ("weight", "units", "choices", "outcomes", "reward", "failed", "culled", "ms")
    made = show.table("arm", "strategy", *right, right=right)
    for arm in arms:
        made.add_row(
            arm.arm,
            arm.strategy,
            f"{arm.weight:g}",
            str(arm.units),
            str(arm.decisions),
            str(arm.outcomes),
            show.number(arm.mean, "+.4g"),
            show.percent(arm.failure_rate),
            show.percent(arm.culled_share),
            show.number(arm.latency_ms, ".3g"),
        )
    return made


def _guardrails_table(one: Comparison) -> Any:
    right = ("worse by", "interval", "limit")
    title = f"Guardrails: {one.arm} against {one.reference}"
    made = show.table("", *right, "state", right=right, title=title)
    for rail in one.guardrails:
        ends = (show.number(rail.low, "+.2f"), show.number(rail.high, "+.2f"))
        style = {"crossed": "red", "kept": "green"}.get(rail.state, "dim")
        made.add_row(
            rail.name.replace("_", " "),
            show.number(rail.worse_by, "+.3f"),
            " to ".join(ends),
            f"{rail.limit:g}",
            Text(rail.state, style=style),
        )
    return made
