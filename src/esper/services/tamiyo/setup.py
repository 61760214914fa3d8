"""Parts of a run, made from its settings; the user's functions, tried out beforehand."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.contracts.config import Config
from esper.contracts.errors import ConfigError
from esper.execution.counterfactual import evaluate
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.shapes import observe_shapes
from esper.execution.side_effect_free import side_effect_free
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.blueprint_integration import smallest_kernels
from esper.services.tamiyo.graft import Training
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.settings import config_from, load_config
from esper.stores import opened
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy

logger = logging.getLogger(__name__)


def config_of(config: Config | Mapping[str, Any] | str | Path | None) -> Config:
    """Settings as they are given: as such, a mapping of sections, or the path of a file.

    Raises:
        ConfigError: if a key or value is wrong.
    """
    if config is None or isinstance(config, Config):
        return config or Config()
    return load_config(config) if isinstance(config, str | Path) else config_from(config)


def journal_of(store: str | MetricsStore | Journal | None) -> Journal:
    """The store that is meant, written behind; one in memory if there is none."""
    found = opened(store)
    return found if isinstance(found, Journal) else Journal(found or MemoryStore())


def strategy_of(config: Config) -> SelectionStrategy | Assignment:
    """Strategy that decides which seed, or an A/B test of several."""
    if config.ab_test is not None:
        return Assignment.of(config.ab_test)
    settings = config.seed_selection
    return STRATEGIES.create(settings.strategy, **settings.settings_of(settings.strategy))


def bind_blueprints(tracker: PerformanceTracker, layers: Mapping[str, KasminaLayer]) -> None:
    """Tell the tracker what every seed stands for."""
    for name, layer in layers.items():
        for seed_idx, blueprint in enumerate(layer.seed_blueprints):
            tracker.bind(name, seed_idx, blueprint)


def try_out(training: Training, layers: Mapping[str, KasminaLayer]) -> None:
    """Run every function of the user's once; what is wrong shows now, not in mid-run.

    Raises:
        ConfigError: if the model is not wrapped, or the holdout is empty or can be read only once.
        KernelError: if the model fails on a batch of the holdout; it is left as it was.
    """
    _check(layers, training.holdout)
    with side_effect_free(training.model, reads=training.holdout):  # iterating a DataLoader draws
        batch = next(iter(training.holdout), None)
    if batch is None:
        raise ConfigError("holdout has no batches; give a list or a DataLoader that has some")
    observe_shapes(training.model, layers, loss_fn=training.loss_fn, batch=batch)
    for function in filter(None, (training.loss_fn, training.accuracy_fn)):
        evaluate(training.model, function, [batch])
    training.optimizer_of_a_seed([nn.Parameter(torch.zeros(1))])
    for name, layer in layers.items():
        if not smallest_kernels(layer):
            logger.warning(
                "layer %s cannot grow: none of its seeds' blueprints, %s, fits it",
                name,
                ", ".join(layer.seed_blueprints),
            )


def _check(layers: Mapping[str, KasminaLayer], holdout: Iterable[Any]) -> None:
    if not layers:
        raise ConfigError("the model has no wrapped layers; call esper.wrap(model, layers=[...])")
    if isinstance(holdout, Iterator):
        raise ConfigError(
            "holdout is an iterator and can be read only once; give a list of batches, or a "
            "DataLoader"
        )
