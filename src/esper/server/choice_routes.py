"""Routes for those who do not train with Esper's own loop, and ask which seed or action to take."""

from collections import defaultdict
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException

from esper.contracts.errors import ConfigError
from esper.contracts.performance import PerformanceDelta, require_finite
from esper.contracts.selection import SelectionContext
from esper.server import bodies
from esper.server.choosers import Choosers
from esper.server.places import Places


def project_of(places: Places) -> Callable[[str], str]:
    """Check of a path's project, which must be one of the service's."""

    def known(project: str) -> str:
        if project not in places.urls:
            raise HTTPException(404, f"no project {project!r}")
        return project

    return known


def choices(places: Places, choosers: Choosers) -> APIRouter:
    """Routes of choices and outcomes."""
    router = APIRouter()

    Project = Annotated[str, Depends(project_of(places))]

    @router.post("/choices")
    def choose(project: Project, body: bodies.Choose) -> bodies.Choice:
        """Choose a seed of a layer and reserve it; the decision is stored."""
        if body.blueprints and len(body.blueprints) != len(body.seeds):
            raise ConfigError(
                f"{len(body.blueprints)} blueprints for {len(body.seeds)} seeds; give one for each"
            )
        context = SelectionContext(
            current_epoch=body.epoch,
            layer_type=body.layer_type,
            blueprints=dict(zip(body.seeds, body.blueprints, strict=False)),
        )
        with choosers.of(project, body.scope) as chooser:
            made, version = chooser.choose(body.layer, body.seeds, context, body.seconds)
        reason = made.reason
        score = reason.score if abs(reason.score) < float("inf") else None
        return bodies.Choice(
            decision=made.decision_id,
            seed=made.seed_idx,
            propensity=reason.propensity,
            score=score,
            strategy=reason.strategy,
            version=version,
            reason=reason.reason,
        )

    @router.post("/outcomes")
    def tell(project: Project, body: bodies.Outcomes) -> bodies.Told:
        """Record outcomes, which count once each; all of them are stored when this answers.

        Or none, where a decision is not known or a number not finite.
        """
        stored, by_scope = 0, defaultdict[str, list[tuple[str, PerformanceDelta]]](list)
        for one in body.outcomes:
            delta = PerformanceDelta(reward=one.reward, reward_stderr=one.stderr)
            require_finite(delta)
            by_scope[one.scope].append((one.decision, delta))
        for scope, told in by_scope.items():  # all are known before one is told
            with choosers.of(project, scope) as chooser:
                for decision, _ in told:
                    chooser.require(decision)
        for scope, told in by_scope.items():
            with choosers.of(project, scope) as chooser:
                stored += sum([chooser.tell(*one) for one in told])
                chooser.settle()
        return bodies.Told(stored=stored, ignored=len(body.outcomes) - stored)

    @router.post("/releases")
    def release(project: Project, body: bodies.Release) -> dict[str, bool]:
        """A choice came to nothing: its seed is free, and nothing is learnt."""
        with choosers.of(project, body.scope) as chooser:
            chooser.release(body.decision)
            chooser.settle()
        return {"released": True}

    return router


def events(places: Places, choosers: Choosers) -> APIRouter:
    """Routes of ranks and rewards."""
    router = APIRouter()
    Project = Annotated[str, Depends(project_of(places))]

    @router.post("/rank")
    def rank(project: Project, body: bodies.Rank) -> bodies.Ranking:
        """Choose among named actions; others may choose the same ones at the same time."""
        names = [action.id for action in body.actions]
        with choosers.ranks(project, body.scope) as ranks:
            made = ranks.rank(names, body.event, excluded=body.excluded, deferred=body.deferred)
        order = sorted(names, key=lambda name: (name != made.action, -made.chances[name]))
        return bodies.Ranking(
            event=made.event,
            action=made.action,
            ranking=[bodies.Chance(id=name, probability=made.chances[name]) for name in order],
            version=made.version,
        )

    @router.post("/events/{event:path}/activate")
    def activate(project: Project, event: str, body: bodies.Activate) -> dict[str, bool]:
        """The action of a deferred event was taken."""
        with choosers.ranks(project, body.scope) as ranks:
            ranks.activate(event)
        return {"activated": True}

    @router.post("/events/{event:path}/reward")
    def reward(project: Project, event: str, body: bodies.Reward) -> dict[str, bool]:
        """Record the reward of an event; the first counts."""
        with choosers.ranks(project, body.scope) as ranks:
            ranks.reward(event, body.value)
        return {"rewarded": True}

    return router
