"""Settings: frozen, checked, with a default for everything; an unknown key is an error.

The document's YAML (``seed_selection:``) is a valid file as it stands; the other sections are ours.
Names that stand in a table (strategies, blueprints, stores) are checked where the tables are:
``services.tamiyo.settings.load_config``.
"""

from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.selection import SelectionConstraints


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Performance(_Section):
    """How the history of a seed is summed up."""

    window_size: int = Field(20, ge=1, description="outcomes of a seed that are remembered")
    decay_factor: float = Field(
        0.9, gt=0, le=1, description="weight of an outcome relative to the one after it"
    )


class SeedSelection(BaseModel):
    """Which strategy chooses, how it is set, and which seeds it may choose.

    A section named like a strategy (``ucb:``, ``thompson:``...) holds that strategy's settings.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    strategy: str = Field("ucb", description="which strategy chooses the seed")
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
    """When, where and how much the network grows. Lengths are in epochs, sizes in parameters."""

    budget: int = Field(2000, ge=0, description="parameters that growth may add in all")
    kernel_budget: int | None = Field(
        None, ge=1, description="parameters of one kernel; by default about an eighth of the budget"
    )
    warmup_epochs: int = Field(2, ge=0, description="epochs before the first graft")
    cooldown_epochs: int = Field(0, ge=0, description="epochs between two grafts")
    plateau_window: int = Field(3, ge=1, description="epochs over which the loss trend is taken")
    plateau_threshold: float = Field(
        0.2, ge=0, description="grow when the held-out loss falls by less than this share an epoch"
    )
    max_active: int = Field(2, ge=1, description="grafts under way at once, over all layers")
    train_epochs: int = Field(2, ge=1, description="epochs in isolation")
    blend_epochs: int = Field(1, ge=1, description="epochs in which alpha goes from 0 to 1")
    keep_stderrs: float = Field(
        2.0, ge=0, description="a kernel is kept if its counterfactual exceeds so many std. errors"
    )
    divergence_factor: float = Field(
        3.0, gt=1, description="held-out loss, in times the last healthy one, that is rolled back"
    )
    probe_every: int = Field(50, ge=1, description="batches between two health probes")


class Reward(_Section):
    """What a graft is worth; counterfactual by default, less rent."""

    kind: Literal["counterfactual", "delta"] = "counterfactual"
    rent_per_kparam: float = Field(0.0, ge=0, description="loss charged per 1,000 parameters")
    rent_per_ms: float = Field(0.0, ge=0, description="loss charged per millisecond of latency")


class Config(_Section):
    """Everything that can be set."""

    seed_selection: SeedSelection = SeedSelection()
    growth: Growth = Growth()
    reward: Reward = Reward()
