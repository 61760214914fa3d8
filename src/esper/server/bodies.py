"""Bodies of requests and answers, which are the service's OpenAPI schema."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=10_000)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]


class Body(BaseModel):
    """Body of a request: nothing that is not named, and no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Refusal(BaseModel):
    """Answer to every request that is refused.

    Attributes:
        error: Kind of the error.
        message: What is wrong, and what would be right.
    """

    error: str
    message: str


class Append(Body):
    """Events that are stored all or not at all.

    Attributes:
        events: Each ``[op_id, kind, scope, run, data, schema, writer, number]``.
        identity: Of the place that the client knows; empty if it knows none.
    """

    events: list[list[Any]]
    identity: Text = ""


class Read(Body):
    """Which events are read: those behind a position, of a scope, a run, some kinds."""

    after: Annotated[str, Field(pattern="^[0-9]{0,18}$")] = ""
    scope: Text | None = None
    run: Text | None = None
    kinds: list[Text] | None = None


class OfScope(Body):
    """A scope."""

    scope: Text


class OfWriter(Body):
    """A writer."""

    writer: Text


class Missing(OfWriter):
    """A writer, and the number below which events are looked for."""

    before: Annotated[int, Field(ge=0, le=2**62)]


class Claim(OfWriter):
    """A writer's lease for so many seconds."""

    holder: Name
    seconds: Annotated[float, Field(ge=0, le=86_400)]


class OfGroup(Body):
    """A group of names that may be reserved."""

    group: Text


class Reserve(OfGroup):
    """A name, who reserves it, and for how many seconds; 0 gives it back."""

    name: Text
    holder: Name
    seconds: Annotated[float, Field(ge=0, le=30 * 86_400)]


class OfSnapshot(Body):
    """A snapshot."""

    name: Text


class Snapshot(OfSnapshot):
    """A snapshot and its text."""

    text: str


class Choose(Body):
    """A choice among the free seeds of a layer.

    Attributes:
        scope: Whose history is learnt from.
        layer: The layer.
        seeds: Those that are dormant and fit.
        epoch: Epoch of the run.
        layer_type: Type of the layer, as ``Linear``.
        blueprints: Blueprint of each seed, in the order of ``seeds``; none if they have none.
        seconds: Time after which the reservation ends by itself; the outcome still counts.
    """

    layer: Name
    seeds: Annotated[list[Index], Field(min_length=1, max_length=100_000)]
    scope: Text = ""
    epoch: Index = 0
    layer_type: Text = ""
    blueprints: list[Text] = []
    seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] = 3600.0


class Choice(BaseModel):
    """A choice: the seed is reserved, and the decision is stored.

    Attributes:
        decision: Id to tell the outcome under.
        seed: The seed.
        propensity: Probability with which it was chosen.
        score: The strategy's own score; ``None`` for a first try.
        strategy: Name of the strategy.
        version: Number of outcomes that the strategy had learnt from.
        reason: One sentence.
    """

    decision: str
    seed: int
    propensity: float
    score: float | None
    strategy: str
    version: int
    reason: str


class Outcome(Body):
    """Outcome of a choice, in the reward's own units, and its standard error.

    Attributes:
        decision: The decision's id.
        reward: Held-out loss without the seed less that with it.
        stderr: Its standard error; ``None`` if it is not known.
    """

    decision: Name
    scope: Text = ""
    reward: float
    stderr: Annotated[float, Field(ge=0)] | None = None


class Outcomes(Body):
    """Outcomes of several choices."""

    outcomes: Annotated[list[Outcome], Field(max_length=10_000)]


class Told(BaseModel):
    """Outcomes that are stored, by whether they were new.

    Attributes:
        stored: Those that count from now on.
        ignored: Those of a choice that had its outcome, whatever they said; the first counts.
    """

    stored: int
    ignored: int


class Release(Body):
    """A choice that came to nothing."""

    decision: Name
    scope: Text = ""


class Action(Body):
    """An action that may be taken."""

    id: Name


class Rank(Body):
    """An event that asks for an action.

    Attributes:
        actions: What may be taken, the caller's own choice first.
        event: Id for the event; drawn if empty.
        excluded: Ids of actions that may not be taken now.
        deferred: The event counts only once it is activated.
    """

    actions: Annotated[list[Action], Field(min_length=1, max_length=1000)]
    event: Text = ""
    scope: Text = ""
    excluded: list[Text] = []
    deferred: bool = False


class Chance(BaseModel):
    """An action and its probability."""

    id: str
    probability: float


class Ranking(BaseModel):
    """The action to take, and the probability of each; ``version``: outcomes learnt from so far."""

    event: str
    action: str
    ranking: list[Chance]
    version: int


class Reward(Body):
    """Reward of an event."""

    value: float
    scope: Text = ""


class Activate(Body):
    """The action of a deferred event was taken."""

    scope: Text = ""
