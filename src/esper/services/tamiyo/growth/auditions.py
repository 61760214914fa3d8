"""Auditions: cohorts of seeds that train side by side, and what each earned beside the others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from esper.contracts.audition import Contrast
from esper.contracts.config import Growth, Reward
from esper.contracts.seeds import SeedState
from esper.execution.passes.counterfactual import Effect
from esper.services.tamiyo.growth.graft import Fault, Graft


def cohorts_of(grafts: Iterable[Graft]) -> list[list[Graft]]:
    """Grafts that audition, audition by audition."""
    cohorts: dict[str, list[Graft]] = {}
    for graft in grafts:
        if graft.auditions:
            cohorts.setdefault(graft.decision.audition, []).append(graft)
    return list(cohorts.values())


def surplus_of(grafts: Iterable[Graft]) -> int:
    """Parameters under way that cannot stay: of each audition all but the largest kernel's."""
    sizes = [[graft.parameters for graft in cohort] for cohort in cohorts_of(grafts)]
    return sum(sum(one) - max(one) for one in sizes)


def trained(cohort: Sequence[Graft], epoch: int, growth: Growth) -> Sequence[Graft]:
    """Grafts of a cohort that can be compared now; none while one of them still trains."""
    able = [graft for graft in cohort if graft.ailment is None]
    due = [graft.due(epoch, growth, measured=True) for graft in able]
    return able if all(state is SeedState.BLENDING for state in due) else ()


def measured(cohort: Sequence[Graft], calibration: Sequence[Any]) -> dict[Graft, Effect]:
    """Effect of each graft; one that is not finite is its kernel's fault, and left out."""
    if not cohort:
        return {}
    first, *others = cohort
    found = first.judge(calibration, others)
    effects = dict(zip(cohort, found, strict=True))
    for graft, effect in list(effects.items()):
        if not (isfinite(effect.gain) and isfinite(effect.stderr)):
            graft.fault = Fault(why="its counterfactual is not finite", of_kernel=True)
            del effects[graft]
    return effects


def contrasts_of(effects: Mapping[Graft, Effect]) -> Iterator[tuple[Graft, Contrast]]:
    """Contrast of each graft of a cohort with the others; none if there is no other."""
    noise = fmean(effect.stderr for effect in effects.values()) if effects else 0.0
    gains = [effect.gain for effect in effects.values()]
    for graft, effect in effects.items() if len(gains) > 1 else ():
        contrast = Contrast(
            point=graft.decision.audition,
            gain=effect.gain,
            stderr=effect.stderr,
            mean=fmean(gains),
            noise=noise,
            cohort=len(gains),
        )
        yield graft, contrast


def best_of(effects: Mapping[Graft, Effect], settings: Reward) -> Graft:
    """The graft that goes on: the best, rent charged; a placebo only if there is nothing else."""
    return max(effects, key=lambda it: (not it.placebo, effects[it].gain - it.rent(settings)))


def lost_to(best: Graft, effects: Mapping[Graft, Effect], graft: Graft) -> str:
    """Sentence on a graft that lost an audition to another."""
    own, other = effects[graft], effects[best]
    placebo = "a placebo, " if graft.placebo and not best.placebo else ""
    return (
        f"lost its audition: {placebo}worth {own.gain:+.4f} ± {own.stderr:.4f} of held-out loss, "
        f"where seed {best.decision.seed_idx} ({best.kernel.blueprint}) is worth {other.gain:+.4f}"
    )
