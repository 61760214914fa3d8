"""Spec of a run: what determines it, made from a task's defaults and the user's options."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from esper import __version__
from esper.contracts.config import Config, Wrap
from esper.contracts.errors import ConfigError
from esper.execution.kernel import count_parameters
from esper.services.tamiyo.settings import config_from
from esper.stores.addresses import remember
from esper.strategies import STRATEGIES
from esper.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Settings of a run; together with the code they determine the result.

    Attributes:
        task: Name in the task table.
        seed: Run seed of initial weights, order of batches and every choice.
        epochs: Epochs for which every network trains.
        config: All settings; ``wrap``, ``growth.budget`` and ``growth.epochs`` are set.
        static: Whether a static network of the grown one's size is trained, too.
        store: URL of the event log, without secrets; empty for one in the run's folder.
        run: Name of the run in the store.
    """

    task: str
    seed: int
    epochs: int
    config: Config
    static: bool = True
    store: str = ""
    run: str = ""

    @property
    def wrap(self) -> Wrap:
        """Layers, widths and seeds of the host: the file's, or the task's."""
        return self.config.wrap or _wrap_of(self.task)

    def to_json(self) -> dict[str, Any]:
        """JSON data of the spec, with the version of Esper."""
        found = {name: getattr(self, name) for name in RunSpec.__slots__}
        return {**found, "config": self.config.model_dump(mode="json"), "version": __version__}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunSpec":
        """Spec from the JSON data of `to_json`, or of an older version's."""
        found = {name: data[name] for name in RunSpec.__slots__ if name in data}
        found["store"] = remember(found.get("store", ""))  # an older version wrote secrets
        return cls(**{**found, "config": Config.model_validate(data["config"])})


def make_spec(  # noqa: PLR0913 (one for each option of esper train)
    task_name: str,
    *,
    seed: int = 0,
    epochs: int | None = None,
    config: Config | None = None,
    strategy: str | None = None,
    budget: int | None = None,
    static: bool = True,
    store: str = "",
) -> RunSpec:
    """Make the spec of a run; what is not given is the task's.

    Args:
        task_name: Name in the task table.
        seed: Run seed.
        epochs: Epochs of every network; by default ``growth.epochs``, or the task's.
        config: All settings, taken as they are; the task's if not given.
        strategy: Strategy that chooses the seeds, instead of the settings'.
        budget: Parameters that growth may add in all, instead of the settings'.
        static: Whether a static network of the grown one's size is trained, too.
        store: URL of the event log.

    Raises:
        ConfigError: if a name is unknown or a number out of range.
    """
    task = TASKS.create(task_name)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; it must be >= 0 and < {2**32}")
    config = config_from(task.config, source=f"task {task_name}") if config is None else config
    epochs = config.growth.epochs or task.default_epochs if epochs is None else epochs
    if epochs < 1:
        raise ConfigError(f"epochs is {epochs}; it must be at least 1")
    if budget is None and not config.growth.model_fields_set & {"budget", "budget_share"}:
        budget = task.default_budget
    if budget is None:
        budget = config.growth.budget_for(count_parameters(task.host(seed)))
    if budget < 0:
        raise ConfigError(f"budget is {budget} parameters; it must be >= 0")
    data = config.model_dump(mode="json")
    data["growth"] |= {"budget": budget, "epochs": epochs}
    data["wrap"] = (config.wrap or _wrap_of(task_name)).model_dump()
    if strategy is not None:
        _refuse_two_choosers(strategy, config)
        data["seed_selection"]["strategy"] = strategy
    # Runs that share a store need names that no other machine gives.
    run = f"{task_name}-s{seed}" + (f"-{uuid4().hex[:8]}" if store else "")
    return RunSpec(
        task=task_name,
        seed=seed,
        epochs=epochs,
        config=Config.model_validate(data),
        static=static,
        store=remember(store),
        run=run,
    )


def _refuse_two_choosers(strategy: str, config: Config) -> None:
    STRATEGIES.load(strategy)
    if config.ab_test is not None:
        raise ConfigError(
            f"strategy {strategy!r} would have no say: the arms of ab_test "
            f"{config.ab_test.salt!r} decide; leave out one of the two"
        )


def _wrap_of(task_name: str) -> Wrap:
    task = TASKS.create(task_name)
    return Wrap(layers=list(task.layers), seeds=list(task.seeds), widen=list(task.widen))
