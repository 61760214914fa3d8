"""Settings: frozen, checked, with a default for everything; an unknown key is an error.

The document's YAML (``seed_selection:``) is a valid file; the other sections are ours.
Names that stand in a table (strategies, blueprints, stores) are checked where the tables are:
``services.tamiyo.settings.load_config``.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from esper.contracts.audition import Mode
from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.selection import SelectionConstraints

LEAST_BUDGET = 2000
"""Parameters that growth may add to the smallest host, unless a budget is set."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Performance(_Section):
    """Window and decay of a seed's history."""

    window_size: int = Field(20, ge=1, description="outcomes of a seed that are remembered")
    decay_factor: float = Field(
        0.9, gt=0, le=1, description="weight of an outcome relative to the one after it"
    )


class SeedSelection(BaseModel):
    """Strategy, its settings, and the seeds that it may choose.

    A section named like a strategy (``ucb:``, ``thompson:``...) holds that strategy's settings.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    strategy: str = Field("auto", description="which strategy chooses the seed")
    audition: Mode = Field(
        "auto",
        description="seeds of a layer train side by side and the best goes on: auto where kernels "
        "train in isolation and the strategy is not sure, always, or never",
    )
    most_auditioned: int | None = Field(
        None,
        ge=2,
        description="seeds of one audition at most, drawn where more may be the best; null: all",
    )
    performance: Performance = Performance()
    constraints: SelectionConstraints = SelectionConstraints()

    @field_validator("constraints", mode="before")
    @classmethod
    def _constraints(cls, value: object) -> object:
        # SelectionConstraints checks its own values; pydantic would take a mapping for a mistake.
        if not isinstance(value, dict):
            return value
        known = [item.name for item in fields(SelectionConstraints)]
        for key in value:
            if key not in known:
                raise ConfigError(unknown_name("key in constraints:", key, known))
        return SelectionConstraints(**value)

    def settings_of(self, strategy: str) -> dict[str, Any]:
        """The section of one strategy, empty if the file has none."""
        return dict((self.model_extra or {}).get(strategy) or {})


class Growth(_Section):
    """Schedule and budget of growth. Lengths are in epochs, sizes in parameters."""

    budget: int | None = Field(
        None,
        ge=0,
        description="parameters that growth may add in all; by default budget_share of the host's",
    )
    budget_share: float = Field(
        1.0,
        ge=0,
        description=f"the default budget relative to the host; it is at least {LEAST_BUDGET}",
    )
    kernel_budget: int | None = Field(
        None, ge=1, description="parameters of one kernel; by default kernel_share of the budget"
    )
    kernel_share: float = Field(
        0.125, gt=0, le=1, description="the default kernel_budget relative to the budget"
    )
    evenly: bool = Field(
        False,
        description="widths grow by the same factor, as far as the budget goes; a kernel takes "
        "kernel_share of its width's growth",
    )
    warmup_epochs: int = Field(2, ge=0, description="epochs before the first graft")
    cooldown_epochs: int = Field(0, ge=0, description="epochs between two grafts")
    plateau_window: int = Field(3, ge=1, description="epochs over which the loss trend is taken")
    plateau_threshold: float = Field(
        0.2, ge=0, description="grow when the held-out loss falls by less than this share an epoch"
    )
    max_active: int = Field(
        2,
        ge=1,
        description="grafts under way at once, over all layers; an audition is one in each layer",
    )
    starts: int = Field(1, ge=1, description="grafts that may begin at the end of one epoch")
    train_epochs: int = Field(
        2, ge=0, description="epochs in isolation; 0: kernels train with the host from the start"
    )
    blend_epochs: int = Field(1, ge=1, description="epochs in which alpha goes from 0 to 1")
    ramp: float = Field(
        1.0, ge=0, le=1, description="share of blend_epochs after which alpha is 1; 0: at once"
    )
    keep_stderrs: float = Field(
        2.0, ge=0, description="a kernel is kept if its counterfactual exceeds so many std. errors"
    )
    judge: Literal["each", "together", "never"] = Field(
        "each",
        description="kernels whose verdicts are due are judged one by one; all beside each other, "
        "which costs half the passes; or never: they stay, and nothing is learnt from them",
    )
    every: int | None = Field(
        None,
        ge=1,
        description="batches after which an epoch of growth ends by itself; null: on_epoch_end",
    )
    divergence_factor: float = Field(
        3.0, gt=1, description="held-out loss, in times the last healthy one, that is rolled back"
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="epochs of the run, if known: no graft begins that could not be judged before",
    )
    probe_every: int = Field(50, ge=1, description="batches between two health probes")
    measure_on: bool = Field(
        True,
        description="go on with held-out losses and probes when no graft can begin any more",
    )

    def budget_for(self, host_parameters: int) -> int:
        """Parameters that growth may add to a host of this size.

        Example:
            >>> Growth().budget_for(442), Growth().budget_for(22_042)
            (2000, 22042)
        """
        if self.budget is not None:
            return self.budget
        return max(LEAST_BUDGET, round(self.budget_share * host_parameters))


class Reward(_Section):
    """Reward of a graft: the counterfactual by default, less rent."""

    kind: Literal["counterfactual", "delta"] = "counterfactual"
    rent_per_kparam: float = Field(0.0, ge=0, description="loss charged per 1,000 parameters")
    rent_per_ms: float = Field(0.0, ge=0, description="loss charged per millisecond of latency")


class Arm(_Section):
    """One arm of an A/B test: a strategy, how it is set, and its share."""

    strategy: str = Field(description="which strategy decides in this arm")
    settings: dict[str, Any] = Field({}, description="its settings; defaults where left out")
    weight: float = Field(1.0, gt=0, description="its share, relative")


class Guardrails(_Section):
    """Margins by which an arm may be worse than the first; beyond that the test says stop."""

    failure_rate: float = Field(0.05, ge=0, description="more failed grafts, as a share of all")
    culled_share: float = Field(0.10, ge=0, description="more culled kernels, as a share of judged")
    latency: float = Field(0.20, ge=0, description="slower kernels, relative to the first arm's")


class AbTest(_Section):
    """A/B test in production: its unit, its arms and their shares."""

    unit: Literal["run", "layer", "graft"] = Field(
        "graft", description="what is assigned: a run, a layer of a run, or each graft"
    )
    arms: dict[str, Arm] = Field(description="at least two; the first is what others are held to")
    salt: str = Field(min_length=1, description="name of the test; another salt, another split")
    guardrails: Guardrails = Guardrails()

    @field_validator("arms")
    @classmethod
    def _arms(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        if len(arms) < 2:
            raise ConfigError(
                f"ab_test.arms has {len(arms)} arm(s); a test compares at least two. Leave ab_test "
                "out to use one strategy"
            )
        return arms


class Wrap(_Section):
    """Layers and seeds of a task's host, for ``esper train``, which wraps the host itself."""

    layers: list[str] = Field(description="layers of the host, as esper.wrap takes them")
    seeds: list[str] = Field(description="blueprint of each seed of every such layer")
    widen: list[str] = Field([], description="widths between layers")


class Config(_Section):
    """Everything that can be set."""

    seed_selection: SeedSelection = SeedSelection()
    policy: str = Field("heuristic", description="which policy decides where and when to grow")
    growth: Growth = Growth()
    reward: Reward = Reward()
    ab_test: AbTest | None = None
    wrap: Wrap | None = Field(None, description="layers and seeds, instead of the task's")


def chosen_by(config: Mapping[str, Any]) -> str:
    """Name of the strategy, or of the A/B test, that these settings let decide.

    Args:
        config: A `Config` as JSON data, of this version or an older one.
    """
    test = config.get("ab_test")
    return f"A/B test {test['salt']!r}" if test else str(config["seed_selection"]["strategy"])
