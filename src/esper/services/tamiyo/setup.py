"""Parts of a run, made from its settings; the user's functions, tried out beforehand."""

import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.config import Config
from esper.contracts.errors import ConfigError, KernelError
from esper.contracts.version import VERSION
from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.kernel import FAULTS
from esper.execution.passes.batches import OnCopies, name_of, tensors_in
from esper.execution.passes.counterfactual import evaluate
from esper.execution.passes.isolation import LossFn
from esper.execution.passes.probes import probe
from esper.execution.passes.reach import reached, refusing
from esper.execution.passes.trial import try_passes
from esper.execution.replicas.data_parallel import refuse_unknown
from esper.execution.replicas.replicas import Replicas
from esper.execution.seeded import Seeded
from esper.execution.shapes import observe_shapes
from esper.execution.side_effect_free import side_effect_free
from esper.services.tamiyo.assignment import Chooser, knowledge_of
from esper.services.tamiyo.blueprint_integration import misfit, smallest_kernels
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.graft import Training
from esper.services.tamiyo.growth.holdout import ONCE, refuse_one_example, refuse_unreadable
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.services.tamiyo.settings import config_from, load_config
from esper.services.tamiyo.tracking import Tracker, Trackers
from esper.stores import opened
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore

logger = logging.getLogger(__name__)


def config_of(config: Config | Mapping[str, Any] | str | Path | None) -> Config:
    """Settings as they are given: as such, a mapping of sections, or the path of a file.

    Raises:
        ConfigError: if it is none of these, a key or value is wrong, or it says what to wrap: the
            model is wrapped already.
    """
    if not (config is None or isinstance(config, Config | Mapping | str | Path)):
        raise ConfigError(
            f"config is {config!r}; give a mapping of sections, as {{'growth': {{'budget': 500}}}}"
            ", the path of a YAML file, or an esper.Config"
        )
    if config is None or isinstance(config, Config):
        found = config or Config()
    else:
        found = load_config(config) if isinstance(config, str | Path) else config_from(config)
    if found.wrap is not None:
        raise ConfigError(
            "the section wrap of the settings is for esper train, and this model is wrapped; give "
            "its layers and seeds to esper.wrap, and leave the section out"
        )
    return found


def journal_of(store: str | MetricsStore | Journal | None, replicas: Replicas) -> Journal:
    """The store that is meant, written behind; one in memory if there is none.

    Of several processes rank 0 alone opens it, and decides by what it holds.
    """
    found = opened(store if replicas.leads else None)
    return found if isinstance(found, Journal) else Journal(found or MemoryStore())


def run_name(run: str | None, store: object, replicas: Replicas) -> str:
    """Name of a run, the same in every process; a fresh one if none is given and it is stored."""
    found: str = replicas.share(lambda: run or ("run" if store is None else token_hex(6)))
    return found


def scope_of(model: nn.Module) -> str:
    """Default scope of a model's history: its class name, also if it is wrapped as a whole."""
    return type(model.host if isinstance(model, KasminaLayer) else model).__name__


def trackers_of(trackers: Sequence[Tracker], replicas: Replicas, aside: Aside) -> Trackers:
    """Trackers of a run, in rank 0.

    Raises:
        ConfigError: if one is none.
    """
    if not isinstance(trackers, Iterable):
        raise ConfigError(f"trackers is {trackers!r}; give a list of trackers")
    for one in trackers:
        if not isinstance(one, Tracker):
            raise ConfigError(
                f"tracker is {one!r}; give objects with log(scalars, step) and close(), as "
                "esper.integrations.trackers has them"
            )
    return Trackers(trackers if replicas.leads else (), aside)


def facts_of(
    model: nn.Module, layers: Mapping[str, Seeded], config: Config, *, optimizers: Any, seed: int
) -> dict[str, Any]:
    """What a run is: the same for two runs of one seed."""
    many = optimizers if isinstance(optimizers, Sequence) else [optimizers]
    return {
        "model": scope_of(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimizers": [type(getattr(one, "optimizer", one)).__name__ for one in many],
        "sites": [
            {"layer": name, "seeds": list(layer.seed_blueprints)} for name, layer in layers.items()
        ],
        "settings": config.model_dump(mode="json"),
        "seed": seed,
        "versions": {
            "esper": VERSION,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def tracker_of(
    config: Config,
    journal: Journal,
    layers: Mapping[str, Seeded],
    *,
    chooser: Chooser,
    scope: str,
    run: str,
) -> PerformanceTracker:
    """Tracker of a run, every seed bound to its blueprint; it keeps what the chooser needs.

    Raises:
        ConfigError: if the scope or the name of the run is no text, or none that can be written.
    """
    for what, name in {"scope": scope, "run": run}.items():
        if not _is_text(name):
            raise ConfigError(f"{what} is {name!r}; it is a name, and must be text in UTF-8")
    performance = config.seed_selection.performance
    tracker = PerformanceTracker(
        window_size=performance.window_size,
        decay_factor=performance.decay_factor,
        store=journal,
        scope=scope,
        run=run,
        begin=knowledge_of(chooser),
    )
    others = [name for name in tracker.layer_names if name not in layers]
    if others:
        logger.warning(
            "the store has runs of scope %r that wrap other layers, as %s; if they are of another "
            "model, give each model a scope of its own: esper.Tamiyo(..., scope=...)",
            scope,
            ", ".join(others[:3]),
        )
    for binding in bindings_of(layers):
        tracker.bind(*binding)
    return tracker


def _is_text(name: object) -> bool:
    try:
        return isinstance(name, str) and name.encode("utf-8") is not None
    except UnicodeEncodeError:  # half of a pair, as from a file name that is no text
        return False


def selector_of(
    config: Config, tracker: PerformanceTracker, chooser: Chooser, seed: int
) -> SeedSelector:
    """Selector of a run."""
    constraints = config.seed_selection.constraints
    return SeedSelector(chooser, tracker=tracker, seed=seed, constraints=constraints)


def bindings_of(layers: Mapping[str, Seeded]) -> list[tuple[str, int, str]]:
    """What every seed stands for: layer, seed, blueprint."""
    return [
        (name, seed_idx, blueprint)
        for name, layer in layers.items()
        for seed_idx, blueprint in enumerate(layer.seed_blueprints)
    ]


def try_out_together(training: Training, layers: Mapping[str, Seeded]) -> dict[str, str]:
    """`try_out` in every process; if it fails in one, it fails in all.

    Raises:
        ConfigError, KernelError: as `try_out`.
        ReplicaError: if a process is gone.
    """
    replicas = training.replicas
    if not replicas.alone:
        refuse_unknown(layers.values())
    with replicas.together("esper.Tamiyo"):
        left_out = try_out(training, layers)
    replicas.inspect_holdout(training.holdout)
    found: dict[str, str] = replicas.share(lambda: left_out)
    return found


def try_out(training: Training, layers: Mapping[str, Seeded]) -> dict[str, str]:
    """Run every function of the user's once; what is wrong shows now, not in mid-run.

    Returns:
        Layers that cannot grow, by name, and why; each is logged as a warning.

    Raises:
        ConfigError: if the model is not wrapped, the holdout is empty or can be read only once, or
            an optimizer cannot train kernels.
        KernelError: if the model fails on a batch of the holdout, or no layer can grow; the model
            is left as it was.
    """
    with torch.inference_mode(False):  # the caller may be in that mode
        if not layers:
            raise ConfigError(
                "the model has no wrapped layers; call esper.wrap(model, layers=[...])"
            )
        refuse_unreadable(training.holdout)
        left_out: dict[str, str] = {}
        batch = _observe_all(training, layers, left_out)
        with suppress(KernelError):  # data that only evaluation takes says nothing of training
            found = reached(
                training.model, layers, loss_fn=training.loss_fn, batch=batch, training=True
            )
            left_out |= {name: why for name, why in found.items() if why}
        _tell(layers, left_out)
        for function in filter(None, (training.loss_fn, training.accuracy_fn)):
            with refusing(batch, name_of(function)):
                evaluate(training.model, function, [batch])
                _require_examples(training.model, function, batch)
            if isinstance(function, OnCopies):
                function.settle()
        refuse_one_example(training)
        _require_gradients(training, {n: la for n, la in layers.items() if n not in left_out})
        training.trainers.check()
        return left_out


def observe(
    training: Training, layers: Mapping[str, Seeded], batch: Any, left_out: dict[str, str]
) -> None:
    """Specify the layers that a batch reaches and that have no specification yet.

    Args:
        training: The user's objects.
        layers: The wrapped layers by name.
        batch: As ``loss_fn`` takes it.
        left_out: Layers that cannot grow, and why; those that are found now are added.

    Raises:
        KernelError: if the model fails on the batch, or a layer does not map a tensor to a tensor.
    """
    every = _unseen(layers, left_out)
    unseen = {name: layer for name, layer in every.items() if isinstance(layer, KasminaLayer)}
    if not unseen:
        return
    model, loss_fn = training.model, training.loss_fn
    found = reached(model, unseen, loss_fn=loss_fn, batch=batch)
    left_out |= {name: why for name, why in found.items() if why}
    readable = {name: unseen[name] for name, why in found.items() if not why}
    if readable:
        observe_shapes(model, readable, loss_fn=loss_fn, batch=batch)


def _unseen(layers: Mapping[str, Seeded], left_out: Mapping[str, str]) -> dict[str, Seeded]:
    return {
        name: layer for name, layer in layers.items() if layer.spec is None and name not in left_out
    }


def _observe_all(training: Training, layers: Mapping[str, Seeded], left_out: dict[str, str]) -> Any:
    """Read the holdout until every layer was seen; returns its first batch."""
    first = None
    for layer in layers.values():
        layer.forget_shapes()  # of another holdout, if there was one
    with side_effect_free(training.model, reads=training.holdout):  # iterating a DataLoader draws
        for batch in training.holdout:
            if first is None:
                first = batch
                for function in filter(None, (training.loss_fn, training.accuracy_fn)):
                    try_passes(training.model, function, batch)
            observe(training, layers, batch, left_out)
            if not _unseen(layers, left_out):
                break
    if first is None:
        raise ConfigError("holdout has no batches; give a list or a DataLoader that has some")
    return first


def _tell(layers: Mapping[str, Seeded], left_out: Mapping[str, str]) -> None:
    """Say which layers cannot grow.

    Raises:
        KernelError: if none can.
    """
    unseen = _unseen(layers, left_out)
    objections = {name: f"it {why}" for name, why in left_out.items()}
    for name, layer in layers.items():
        if name not in unseen and name not in left_out and not smallest_kernels(layer):
            blueprints = ", ".join(layer.seed_blueprints)
            objections[name] = (
                f"none of its seeds' blueprints, {blueprints}, fits it ({misfit(layer)}); give "
                "it others by esper.wrap(..., seeds=[...]), or wrap a layer beside it"
            )
    if len(unseen) + len(objections) == len(layers):
        for name, why in objections.items():
            raise KernelError(f"layer {name!r} cannot grow: {why}")
        raise KernelError(
            f"layer {next(iter(unseen))!r} is never called in forward, so it cannot grow; wrap one "
            "that is"
        )
    for name, why in objections.items():
        logger.warning("layer %s cannot grow: %s", name, why)
    for name in unseen:
        logger.warning(
            "layer %s was called in no batch of the holdout; it can grow once a training batch "
            "reaches it",
            name,
        )


def _require_gradients(training: Training, layers: Mapping[str, Seeded]) -> None:
    """Refuse a model whose losses in training depend on none of the layers that they call.

    Raises:
        ConfigError: if the holdout has no batches any more, or was made in inference mode.
        KernelError: that names the first of them, losses without gradients, or reentrant
            checkpointing.
    """
    deaf: dict[str, None] = {}
    empty, inference = True, False
    with side_effect_free(training.model, reads=training.holdout):
        for batch in training.holdout:
            empty = False
            inference |= any(tensor.is_inference() for tensor in tensors_in(batch))
            given: dict[str, Any] = {"loss_fn": training.loss_fn, "batch": batch}
            with suppress(*FAULTS):  # data that only evaluation takes
                deaf |= dict.fromkeys(reached(training.model, layers, training=True, **given))
            try:
                if probe(training.model, layers, **given):
                    return
            except KernelError:
                raise
            except FAULTS:  # as under vmap: no gradient can be taken
                continue
    if empty:
        raise ConfigError(ONCE)
    if inference:
        raise ConfigError(
            "the batches of the holdout were made under torch.inference_mode(), and no gradient "
            "passes through what reads them; make them outside of it, as under torch.no_grad(), or "
            "clone() their tensors outside of it"
        )
    for name in deaf:
        raise KernelError(
            f"layer {name!r} cannot grow: no loss of the holdout depends on it in training, as "
            "under torch.no_grad, torch.func.vmap or reentrant gradient checkpointing; let "
            "gradients reach it, and call torch.utils.checkpoint.checkpoint with "
            "use_reentrant=False"
        )


def _require_examples(model: nn.Module, function: LossFn, batch: Any) -> None:
    """Refuse a square of losses: it is what (B, 1) against (B,) becomes by broadcasting."""
    with side_effect_free(model, training=False), torch.no_grad():
        losses = function(model, batch)
    if isinstance(losses, Tensor) and losses.ndim == 2 and losses.shape[0] == losses.shape[1] > 1:
        raise ConfigError(
            f"{name_of(function)}(model, batch) returned {tuple(losses.shape)}, as predictions "
            "(B, 1) against targets (B,) do; it must return one loss per example, shape (B,), or "
            "losses per token with their mask: (losses, mask), both (B, T)"
        )
